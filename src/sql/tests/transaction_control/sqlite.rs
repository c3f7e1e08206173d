use super::*;

#[test]
fn sqlite_control_is_found() {
    assert_control(
        Sqlite,
        &[
            (Begin, &["begin", "begin immediate", "begin transaction"]),
            (
                Commit,
                &["commit", "end", "end transaction", "commit transaction"],
            ),
            (
                Rollback,
                &["rollback", "rollback transaction", "rollback transaction x"],
            ),
            (
                Savepoint,
                &[
                    "savepoint a",
                    "release a",
                    "rollback to a",
                    "rollback transaction to savepoint a",
                ],
            ),
        ],
    );
}

#[test]
fn quotes_of_sqlite_are_read_as_it_does() {
    assert_all(
        Sqlite,
        Effect::None,
        &[
            "SELECT 1 AS [a; commit; --]; SELECT 1",
            "SELECT 1 AS `a``; commit; --`; SELECT 1",
            "SELECT 'a\\'; SELECT '; commit; --'",
            "SELECT 1; /* commit",
            "-- x\rcommit",
            "SELECT :a, @b, $c, ?1; SELECT 1",
        ],
    );
    assert_all(
        Sqlite,
        Effect::Control(Commit),
        &[
            "SELECT 'a\\'; commit; --'",
            "SELECT $a('); commit; --'",
            "SELECT @a::b('); commit; --'",
            "\u{feff}SELECT \u{feff}$a('); commit; --'",
            "SELECT $ ' ' ; commit; --'",
            "SELECT [a[]; commit; --]",
            "/* /* */ commit",
            "SELECT 1;\u{feff}commit",
        ],
    );
    assert_all(
        Sqlite,
        Unknown,
        &["SELECT 1; SELECT 'a", "SELECT [; commit"],
    );
}
