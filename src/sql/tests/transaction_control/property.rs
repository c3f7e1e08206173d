use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any, prop_oneof},
    prop_assert, prop_assert_eq, proptest,
    sample::select,
};

use super::*;

fn backend() -> impl Strategy<Value = DbBackend> {
    select(&ALL[..])
}

/// Harmless on each backend, with control words where they control nothing.
fn harmless() -> impl Strategy<Value = String> {
    let literal = "[ a-z;/*!$-]{0,12}";
    let word = select(vec![
        "commit",
        "begin",
        "rollback",
        "end",
        "savepoint a",
        "start transaction",
        "set autocommit=0",
    ]);
    (literal, word, 0..7_usize).prop_map(|(noise, word, form)| {
        let quoted = format!("{noise};{word};{noise}").replace("*/", "");
        match form {
            0 => format!("select '{quoted}'"),
            1 => format!("INSERT INTO t VALUES ('it''s {quoted}', 1)"),
            2 => format!("select 1 as \"{quoted}\""),
            3 => format!("update t set a = 1 -- {quoted}\n"),
            4 => format!(
                "/* {} */ delete from t",
                quoted.replace("/*", "").replace('/', "")
            ),
            5 => "select case when a then 1 end as endings, t.commit from begin_date".to_owned(),
            _ => String::new(),
        }
    })
}

proptest! {
    #[test]
    fn any_text_has_an_effect(backend in backend(), sql in any::<String>()) {
        effect(backend, &sql);
    }

    #[test]
    fn any_pieces_of_sql_have_an_effect(
        backend in backend(),
        pieces in vec(
            select(vec![
                "'", "\"", "`", "[", "]", "$$", "$a$", "$", "\\", "/*", "*/", "/*!", "/*M!50000", "--", "#", "\n", "\r",
                ";", "(", ")", "@", ",", "=", ":", "é", "\u{feff}", "\u{a0}", "\0", " ", "e", "E'", "create", "function",
                "trigger", "begin", "atomic", "end", "case", "if", "set", "statement", "for", "rollback", "to", "1",
            ]),
            0..40,
        ),
    ) {
        effect(backend, &pieces.concat());
        effect(backend, &pieces.join(" "));
    }

    #[test]
    fn control_between_harmless_statements_is_found(
        backend in backend(),
        before in vec(harmless(), 0..4),
        after in vec(harmless(), 0..4),
        word in select(vec!["commit", "BEGIN", "Rollback", "savepoint a", "RELEASE SAVEPOINT a", "rollback to a"]),
        space in select(vec!["", " ", "\r\n", "\t", "/**/", "/* ' */", "-- '\n", "\u{feff}"]),
    ) {
        let statements: Vec<_> = before.into_iter().chain([format!("{space}{word}{space}")]).chain(after).collect();
        let sql = statements.join(";");
        prop_assert!(matches!(effect(backend, &sql), Effect::Control(_)), "{sql}");
    }

    #[test]
    fn harmless_texts_are_let_through(backend in backend(), statements in vec(harmless(), 0..6)) {
        let sql = statements.join(";");
        prop_assert_eq!(effect(backend, &sql), Effect::None, "{}", sql);
    }

    #[test]
    fn quoted_control_is_let_through_on_postgres(
        tag in "[a-z_]{0,3}",
        body in "[a-z ';\"/*-]{0,20}",
        end in prop_oneof![Just(""), Just("; select 2")],
    ) {
        let sql = format!("select ${tag}${body};commit;{body}${tag}${end}");
        prop_assert_eq!(effect(Postgres, &sql), Effect::None, "{}", sql);
    }
}
