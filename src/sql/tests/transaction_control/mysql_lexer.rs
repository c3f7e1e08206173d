use super::*;

#[test]
fn quotes_of_mysql_are_read_as_it_does() {
    assert_all(
        MySql,
        Effect::None,
        &[
            "SELECT 'a\\'; commit; --'; SELECT 1",
            "SELECT \"a\\\"; commit; --\"; SELECT 1",
            "SELECT `a``; commit; --`; SELECT 1",
            "SELECT 1 # ; commit",
            "SELECT 1 -- ; commit",
            "SELECT 1 --\t; commit",
            "SELECT 1 /*+ NO_INDEX(t) ; commit */; SELECT 2",
            "SELECT /*!40001 SQL_NO_CACHE */ * FROM t",
            "/*!40101 SET NAMES utf8 */; SELECT 1",
            "SELECT /*m!; commit */ 1; SELECT 1",
        ],
    );
    assert_all(
        MySql,
        Effect::Control(Commit),
        &[
            "SELECT `a\\`; commit; --`",
            "SELECT 'a\\\\'; commit; --'",
            "SELECT 5--4; commit",
            "SELECT 1 --; commit",
            "/* /* */ commit",
            "SELECT $$; commit; --$$",
            "SELECT 1 # x\n; commit",
        ],
    );
    assert_all(
        MySql,
        Unknown,
        &[
            "SELECT 1; SELECT 'a\\'",
            "SELECT 1; SELECT 'a\\",
            "SELECT `; commit",
            "SELECT 1; /*",
        ],
    );
}

#[test]
fn executable_comments_are_sql() {
    assert_all(
        MySql,
        Effect::Control(Commit),
        &[
            "/*!commit*/",
            "/*! commit */;",
            "/*!50100 commit */",
            "/*!100100 commit */",
            "/*M!commit*/",
            "/*M!100100 commit */",
            "/*!999999 select */ commit",
            "/*!999999 select */ /*!50000 commit */",
            "/*!*/commit",
            "/*!50100*/commit",
            "/*! /* commit */ commit */",
            "/*M! select /* */ commit; -- */",
            "SELECT 1 /*! ; commit */",
            "SELECT 1 /*M! */; commit",
            "com/**/; /*!commit*/",
        ],
    );
    assert_all(
        MySql,
        Effect::Control(Begin),
        &["/*!50000 start */ transaction", "start /*! transaction */"],
    );
    assert_all(
        MySql,
        Effect::Control(Begin),
        &[
            "create table t (a int) /*!80021 start transaction */",
            "/*! create */ table t (a int) start transaction",
        ],
    );
    assert_all(
        MySql,
        CommitsImplicitly,
        &[
            "create table t (start int, transaction int)",
            "create table t (a int) comment = 'start transaction'",
        ],
    );
    assert_all(
        MySql,
        Effect::Control(SetTransaction),
        &[
            "set /*! transaction */ read only",
            "/*!set autocommit=0*/",
            "/*! set */ autocommit = 0",
        ],
    );
    assert_all(
        MySql,
        Unknown,
        &[
            "SELECT 1 /*!999999 ' */; commit; -- '",
            "SELECT 1; SELECT 1 /*! ",
            "set @a = 1 /*!999999 , @x = */ , b = 0",
        ],
    );
    assert_all(
        MySql,
        CommitsImplicitly,
        &[
            "drop /*!40005 temporary */ table t",
            "/*!50000 create */ temporary table t (a int)",
        ],
    );
}
