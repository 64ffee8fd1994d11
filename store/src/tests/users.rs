//! Registration.

use std::collections::HashSet;

use super::bench::{Bench, FreshDatabase, new_user};
use super::on_both;
use crate::{Error, NewUser};

on_both!(
    the_first_of_a_race_is_the_only_operator,
    of_those_who_must_be_first_one_is,
    an_email_is_taken_whatever_its_case,
    a_taken_handle_gets_a_number,
    what_was_stored_comes_back,
    several_programs_open_one_database_at_once,
);

async fn the_first_of_a_race_is_the_only_operator(bench: &Bench) {
    let racers = (0..12).map(|n| bench.store.create_user(new_user(&format!("user{n}@example.org"))));
    let users = futures_util::future::try_join_all(racers).await.unwrap();
    assert_eq!(users.iter().filter(|user| user.operator).count(), 1);
    assert!(!bench.user("late@example.org").await.operator);
}

async fn of_those_who_must_be_first_one_is(bench: &Bench) {
    let first = |n: usize| NewUser { only_first: true, ..new_user(&format!("user{n}@example.org")) };
    let racers = (0..12).map(|n| bench.store.create_user(first(n)));
    let results = futures_util::future::join_all(racers).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert!(results.iter().all(|result| matches!(result, Ok(_) | Err(Error::NotFirst))));
    assert!(!bench.user("late@example.org").await.operator);
}

async fn an_email_is_taken_whatever_its_case(bench: &Bench) {
    let ada = bench.user("Ada@Example.org").await;
    let again = bench.store.create_user(new_user("aDA@example.ORG")).await;
    assert!(matches!(again, Err(Error::Taken)), "{again:?}");
    assert_eq!(bench.store.user_by_email("ADA@EXAMPLE.ORG").await.unwrap(), Some(ada));
    let umlaut = bench.user("u@müller.example").await;
    assert_eq!(bench.store.user_by_email("U@MÜLLER.example").await.unwrap(), Some(umlaut));
}

async fn a_taken_handle_gets_a_number(bench: &Bench) {
    let mut handles = Vec::new();
    for n in 0..3 {
        handles.push(bench.user(&format!("ada@{n}.example")).await.handle.to_string());
    }
    assert_eq!(handles, ["ada", "ada-2", "ada-3"]);
    let racers = (3..11).map(|n| bench.store.create_user(new_user(&format!("ada@{n}.example"))));
    let users = futures_util::future::try_join_all(racers).await.unwrap();
    let distinct: HashSet<_> = users.iter().map(|user| user.handle.as_str()).collect();
    assert_eq!(distinct.len(), 8);
    let long = "a".repeat(63);
    for n in 0..2 {
        assert!(bench.user(&format!("{long}@{n}.example")).await.handle.as_str().len() <= 63);
    }
}

async fn what_was_stored_comes_back(bench: &Bench) {
    let ada = bench.user("ada@example.org").await;
    assert_eq!(bench.store.user(ada.id).await.unwrap(), Some(ada.clone()));
    assert_eq!(bench.store.user_by_email("ada@example.org").await.unwrap(), Some(ada.clone()));
    assert_eq!(bench.store.user_by_email("nobody@example.org").await.unwrap(), None);
    assert_eq!(bench.store.user_by_email("ada\0@example.org").await.unwrap(), None);
    assert!((chrono::Utc::now() - ada.created_at).num_seconds().abs() < 60, "not UTC: {}", ada.created_at);
    bench.store.ping().await.unwrap();
}

async fn several_programs_open_one_database_at_once(bench: &Bench) {
    let place = if bench.is_postgres() { FreshDatabase::postgres().await } else { FreshDatabase::sqlite() };
    let stores = futures_util::future::join_all((0..4).map(|_| place.open())).await;
    for store in &stores {
        store.ping().await.unwrap();
    }
    place.open().await.ping().await.unwrap();
    drop(stores);
    place.drop().await;
}
