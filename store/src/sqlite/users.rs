//! `users`.

use std::collections::HashSet;

use common::ids::UserId;
use sqlx::SqlitePool;
use sqlx::types::Json;

use super::begin;
use crate::rows::UserRow;
use crate::text::storable;
use crate::{Error, NewUser, User, handles};

pub(super) async fn create(writer: &SqlitePool, user: NewUser) -> Result<User, Error> {
    let mut tx = begin(writer).await?;
    if user.only_first && sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM users)").fetch_one(&mut *tx).await? {
        return Err(Error::NotFirst);
    }
    let taken: Vec<String> =
        sqlx::query_scalar("SELECT handle FROM users WHERE handle IN (SELECT value FROM json_each($1))")
            .bind(Json(handles::candidates(&user.handle)))
            .fetch_all(&mut *tx)
            .await?;
    let row: Result<UserRow, sqlx::Error> = sqlx::query_as(
        "INSERT INTO users (id, email, email_key, handle, password_hash, operator)
         VALUES ($1, $2, $3, $4, $5, NOT EXISTS (SELECT 1 FROM users)) RETURNING *",
    )
    .bind(user.id.uuid())
    .bind(storable(&user.email))
    .bind(storable(&user.email.to_lowercase()))
    .bind(handles::free(&user.handle, &HashSet::from_iter(taken), user.id))
    .bind(&user.password_hash)
    .fetch_one(&mut *tx)
    .await;
    let row = row.map_err(Error::of_unique)?;
    tx.commit().await?;
    row.try_into()
}

pub(super) async fn by_email(readers: &SqlitePool, email: &str) -> Result<Option<User>, Error> {
    let row: Option<UserRow> = sqlx::query_as("SELECT * FROM users WHERE email_key = $1")
        .bind(storable(&email.to_lowercase()))
        .fetch_optional(readers)
        .await?;
    row.map(User::try_from).transpose()
}

pub(super) async fn by_id(readers: &SqlitePool, id: UserId) -> Result<Option<User>, Error> {
    let row: Option<UserRow> =
        sqlx::query_as("SELECT * FROM users WHERE id = $1").bind(id.uuid()).fetch_optional(readers).await?;
    row.map(User::try_from).transpose()
}

pub(super) async fn any(readers: &SqlitePool) -> Result<bool, Error> {
    Ok(sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM users)").fetch_one(readers).await?)
}
