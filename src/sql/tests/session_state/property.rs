use proptest::{collection::vec, prelude::any, prop_assert_eq, proptest, sample::select};

use super::*;

proptest! {
    #[test]
    fn any_pieces_of_sql_have_a_change(
        backend in select(vec![MySql, Postgres, Sqlite]),
        noise in any::<String>(),
        pieces in vec(
            select(vec![
                "'", "\"", "`", "[", "$$", "\\", "/*", "*/", "/*!", "--", "\n", ";", "(", ")", "@", ":", "=", ",", "é", "_",
                "set_config", "pg_temp", "temp", "create", "into", "set", "statement", "for", "pragma", "explain", "true", "U&",
                "select", "get_lock", "dblink", " ",
            ]),
            0..30,
        ),
    ) {
        change(backend, &noise);
        change(backend, &pieces.concat());
        change(backend, &pieces.join(" "));
    }

    /// The short cut for statements of the usual kind gives the answer that the
    /// long way gives.
    #[test]
    fn the_short_cut_overlooks_nothing(
        backend in select(vec![MySql, Postgres, Sqlite]),
        pieces in vec(
            select(vec![
                "a", "1", ",", "(", ")", "'x'", "set_config", "SET_CONFIG(", "pg_advisory_lock(1)", "pg_temp.f()", "INTO", "temp",
                "TEMPORARY", "t", "@a", ":=", "U&\"x\"", "\"set_config\"", "get_lock('a', 1)", "dblink_connect('a')", "/* x */",
                "load_extension('x')", "-- y\n", "update", "for update", "for share", "\"update\"", "updated_at", "$1", "nextval('s')", "service_get_read_locks('a', 'b', 1)", "pg_try_advisory_lock_shared(1)",
                "pg_replication_origin_session_setup('x')", "as", "from", "where", "lastval()", "Currval('s')", "last_insert_id()",
                "last_insert_rowid ()", "changes()", "total_changes()", "row_count()", "found_rows()", "previous value for s",
                "@@identity", "setseed(0.5)", "returning",
            ]),
            0..12,
        ),
        // Without one, words grow together.
        separator in select(vec![" ", ""]),
    ) {
        let sql = format!("SELECT {}", pieces.join(separator));
        // An empty statement in front makes it a text that is always read in
        // full.
        prop_assert_eq!(change(backend, &sql), change(backend, &format!("; {}", sql)), "{}", sql);
        // So does a comment, behind which it is still one statement.
        prop_assert_eq!(classify(backend, &sql), classify(backend, &format!("/**/{}", sql)), "{}", sql);
    }
}
