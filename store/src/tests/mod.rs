//! The store's own suite: every test runs against SQLite and against a real Postgres.

mod artifacts;
pub(crate) mod bench;
mod changes;
mod claims;
mod deployments;
mod fleet;
mod functions;
mod opening;
mod records;
mod tokens;
mod users;

/// Makes of each named function a test on either database.
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                $crate::tests::bench::Bench::sqlite().await.check(super::$name).await;
            })+
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                $crate::tests::bench::Bench::postgres().await.check(super::$name).await;
            })+
        }
    };
}
pub(crate) use on_both;
