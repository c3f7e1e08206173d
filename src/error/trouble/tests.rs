use super::table::{Mark, Says, TABLE};

/// Whether each code is said without a doubt by one row only, and not hidden by
/// a row before.
fn check<Code: Copy + std::fmt::Debug>(
    codes: &[(Code, Mark)],
    covers: impl Fn(Code, Code) -> bool,
) {
    for (place, (code, mark)) in codes.iter().enumerate() {
        for (earlier, earlier_mark) in &codes[..place] {
            let hidden =
                covers(*earlier, *code) && (*earlier_mark == Mark::Any || earlier_mark == mark);
            assert!(!hidden, "{code:?} is taken for {earlier:?}");
        }
    }
}

fn all<Code: Copy + 'static>(says: impl Iterator<Item = &'static Says<Code>>) -> Vec<(Code, Mark)> {
    let mut all = Vec::new();
    for says in says {
        match says {
            Says::These(codes) => {
                assert!(
                    !codes.is_empty(),
                    "a trouble that a server has no code for says why"
                );
                all.extend_from_slice(codes);
            }
            Says::Nothing(why) => assert!(!why.is_empty()),
        }
    }
    all
}

#[test]
fn every_trouble_has_a_code_or_a_reason_on_every_server() {
    check(
        &all(TABLE.iter().map(|row| &row.postgres)),
        |earlier, code| code.starts_with(earlier),
    );
    check(&all(TABLE.iter().map(|row| &row.mysql)), |earlier, code| {
        earlier == code
    });
    check(
        &all(TABLE.iter().map(|row| &row.sqlite)),
        |earlier, code| earlier == code || earlier == code & 0xff,
    );
}

#[test]
fn every_trouble_has_one_row() {
    use super::Trouble::*;
    // A trouble that is missing here does not compile.
    let next = |trouble| match trouble {
        Serialization => Some(Deadlock),
        Deadlock => Some(LockNotAvailable),
        LockNotAvailable => Some(StatementTimeout),
        StatementTimeout => Some(ReadOnly),
        ReadOnly => Some(NoQuorum),
        NoQuorum => Some(CommitInterrupted),
        CommitInterrupted => Some(TooManyConnections),
        TooManyConnections => Some(StartingUp),
        StartingUp => Some(LogInRefused),
        LogInRefused => Some(IdleEnded),
        IdleEnded => Some(TransactionIdle),
        TransactionIdle => Some(TransactionOverdue),
        TransactionOverdue => Some(ConnectionEnded),
        ConnectionEnded => Some(TransactionAborted),
        TransactionAborted => Some(TransactionEnded),
        TransactionEnded => Some(StatementRefused),
        StatementRefused => Some(TransactionOpen),
        TransactionOpen => Some(NoSuchProcess),
        NoSuchProcess => Some(StalePlan),
        StalePlan => None,
    };
    for trouble in std::iter::successors(Some(Serialization), |trouble| next(*trouble)) {
        let rows = TABLE.iter().filter(|row| row.trouble == trouble).count();
        assert_eq!(rows, 1, "{trouble:?}");
    }
}
