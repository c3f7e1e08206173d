use super::*;

#[test]
fn postgres_control_is_found() {
    assert_control(
        Postgres,
        &[
            (
                Begin,
                &[
                    "begin",
                    "begin work",
                    "start transaction",
                    "begin isolation level serializable",
                ],
            ),
            (Commit, &["commit", "end", "commit work", "end and chain"]),
            (Rollback, &["rollback", "abort", "rollback work and chain"]),
            (
                Savepoint,
                &[
                    "savepoint a",
                    "release a",
                    "release savepoint a",
                    "rollback to a",
                    "rollback work to a",
                ],
            ),
            (
                TwoPhase,
                &[
                    "prepare transaction 'x'",
                    "commit prepared 'x'",
                    "rollback prepared 'x'",
                ],
            ),
        ],
    );
}

#[test]
fn quotes_of_postgres_are_read_as_it_does() {
    assert_all(
        Postgres,
        Effect::None,
        &[
            "SELECT $$; commit; $$; SELECT 1",
            "SELECT $a$ $$; commit; $b$; commit; $a$; SELECT 1",
            "SELECT $a$b$; commit; $a$",
            "SELECT $é$; commit; $é$; SELECT 1",
            "SELECT E'\\'; commit; --'; SELECT 1",
            "SELECT e'a'\n'\\'; commit; --'; SELECT 1",
            "SELECT e'a' -- x\n  '\\'; commit; --'; SELECT 1",
            "SELECT 'a\\'; SELECT '; commit; --'",
            "SELECT \"a\\\"; SELECT \"; commit; --\"",
            "/* /* */ ; commit; */ SELECT 1",
            "SELECT 1 AS $1; SELECT $2",
        ],
    );
    assert_all(
        Postgres,
        Effect::Control(Commit),
        &[
            "SELECT 1 AS a$$; commit; --$$",
            "SELECT 1 AS é$$; commit; --$$",
            "SELECT 'a\\'; commit; --'",
            "SELECT n'a\\'; commit; --'",
            "SELECT namee'\\'; commit; --'",
            "SELECT E'\\\\'; commit; --'",
            "SELECT 'a' -- x\n'\\'; commit; --'",
            "SELECT $1 - $2; commit; SELECT $1",
            "SELECT 1e'\\'' ; commit; --'",
            "SELECT 1$$ ' $$; commit; --'",
            "/* /* */ */ commit",
            "-- x\rcommit",
            "/*! select */ commit",
            "SELECT 1 # 2; commit",
        ],
    );
    assert_all(
        Postgres,
        Unknown,
        &[
            "SELECT 1; SELECT 'a",
            "SELECT $$; commit",
            "SELECT \"; commit",
            "/* commit",
            "SELECT E'\\'; commit",
        ],
    );
}
