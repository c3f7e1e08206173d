//! [`CurrentUser`]: in place of Loco's `JWTWithUser`, which asks `ctx.db`.

use axum::{
    extract::{FromRef, FromRequestParts},
    http::request::Parts,
};
use loco_rs::{controller::extractor::auth::JWT, prelude::*};
use tower_sea_orm::DbSession;

use crate::user;

/// The user of the request's token, read through the request's session.
pub struct CurrentUser(pub user::Model);

impl<S> FromRequestParts<S> for CurrentUser
where
    AppContext: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        let token = JWT::from_request_parts(parts, state).await?;
        let db = DbSession::from_extensions(&parts.extensions).map_err(Error::wrap)?;
        let user = user::Entity::find().filter(user::Column::Pid.eq(token.claims.pid));
        let user = user.one(&db).await?;
        user.map(Self)
            .ok_or_else(|| Error::Unauthorized("no such user".to_owned()))
    }
}
