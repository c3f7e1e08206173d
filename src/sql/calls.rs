//! [`calls_nothing_unknown`]: whether a query may run twice, which one with a function of the user's own may not.

use sea_orm::DbBackend;

use super::lexer::{Lexer, Token};

/// Words that an opening parenthesis may follow: those of the language and
/// types with a length.
// A word that is missing costs its queries a ping (`pool/call.rs`). One too
// many would have a function of the user's run twice.
const LANGUAGE: [&str; 41] = [
    "all",
    "and",
    "any",
    "as",
    "between",
    "by",
    "case",
    "char",
    "decimal",
    "distinct",
    "else",
    "except",
    "exists",
    "filter",
    "from",
    "having",
    "in",
    "intersect",
    "is",
    "join",
    "lateral",
    "like",
    "limit",
    "not",
    "numeric",
    "offset",
    "on",
    "or",
    "over",
    "partition",
    "select",
    "some",
    "then",
    "union",
    "using",
    "values",
    "varchar",
    "when",
    "where",
    "within",
    "group",
];

/// Functions of the servers that only compute.
// No `nextval` and no advisory lock: those change something in a statement that
// reads by its keywords. PostgreSQL looks for a function in `pg_catalog` before
// the search path, unless that names it later
// (<https://www.postgresql.org/docs/current/ddl-schemas.html#DDL-SCHEMAS-CATALOG>).
// A user's overload for other types counts as much as the server's own
// (<https://www.postgresql.org/docs/current/typeconv-func.html>), and is not
// told from it here.
const FUNCTIONS: [&str; 53] = [
    "abs",
    "array_agg",
    "avg",
    "bool_and",
    "bool_or",
    "cast",
    "ceil",
    "ceiling",
    "char_length",
    "coalesce",
    "concat",
    "concat_ws",
    "count",
    "date",
    "date_format",
    "date_part",
    "date_trunc",
    "dense_rank",
    "extract",
    "first_value",
    "floor",
    "generate_series",
    "greatest",
    "group_concat",
    "if",
    "ifnull",
    "json_agg",
    "json_build_object",
    "jsonb_agg",
    "jsonb_build_object",
    "lag",
    "last_value",
    "lead",
    "least",
    "left",
    "length",
    "lower",
    "max",
    "min",
    "mod",
    "now",
    "nullif",
    "rank",
    "replace",
    "right",
    "round",
    "row_number",
    "string_agg",
    "substring",
    "sum",
    "to_char",
    "trim",
    "upper",
];

/// Returns whether `sql`, which reads by its keywords, calls no function but
/// those that are known to change nothing. In doubt it does. The views that it
/// reads and the policies of its tables are not looked into.
pub(crate) fn calls_nothing_unknown(backend: DbBackend, sql: &str) -> bool {
    let is_dot = |token| token == Token::Symbol(b'.');
    // As behind another statement: a parenthesis that comes first calls
    // nothing.
    let (mut before, mut last) = (Token::Symbol(b';'), Token::Symbol(b';'));
    for token in Lexer::new(backend, sql) {
        let may_call = token == Token::Symbol(b'(') && !matches!(last, Token::Symbol(_));
        // Not a name in quotes: on PostgreSQL, `"Count"(…)` is another function
        // than `count(…)`.
        let is_known = last.is_one_of(&LANGUAGE) || last.is_one_of(&FUNCTIONS);
        // With a schema before it, the name may be anything's.
        if may_call && (!is_known || is_dot(before)) {
            return false;
        }
        (before, last) = (last, token);
    }
    true
}
