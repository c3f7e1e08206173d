//! The reader's time is linear in a text's length: counted, not measured.

use sea_orm::DatabaseBackend::{MySql, Postgres, Sqlite};

use crate::sql::{classify, lexer::steps};

/// Pieces that, said often, have made readers of SQL slow.
const PIECES: [&str; 36] = [
    "set_config(",
    "set_config('a', ",
    "SELECT set_config(a[",
    "(",
    ")",
    "[",
    "/*",
    "/* ",
    "*/",
    "/*!",
    "/*! set ",
    "/*!50000 create */",
    "*/ set statement a = 1 ",
    "SET STATEMENT a = 1 ",
    "SET STATEMENT a = 1 FOR ",
    "SET a = 1, ",
    "SET @@a",
    "SET/**/",
    "'",
    "''",
    "\"",
    "`",
    "E'a' \n",
    "E'a'\n--\n",
    "$a",
    "$a$",
    "$$ ",
    "CREATE OR REPLACE ",
    "CREATE FUNCTION f(",
    "create procedure begin ",
    "begin atomic case ",
    "create trigger begin end ",
    "explain query plan ",
    "for update key share no ",
    "@a:=@",
    "select ; -- a\n",
];

#[test]
fn the_time_is_linear_in_the_length_of_the_text() {
    for backend in [MySql, Postgres, Sqlite] {
        for first in ["", "SELECT ", "CREATE ", "CREATE FUNCTION ", "SET ", "/*! "] {
            for piece in PIECES {
                let count = |times: usize| {
                    let sql = format!("{first}{}", piece.repeat(times));
                    steps::reset();
                    classify(backend, &sql);
                    steps::count_so_far()
                };
                let (once, twice) = (count(500), count(1000));
                assert!(
                    twice <= 2 * once + once / 4 + 2000,
                    "{backend:?}, {first}{piece}…: {once} steps, then {twice}"
                );
            }
        }
    }
}
