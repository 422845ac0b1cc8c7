//! Many requests in one, some of them at a time; each has its own outcome.

use std::future::Future;

use axum::Json;
use futures_util::{StreamExt as _, stream};
use ringfence_api::{
    BatchCreate, BatchCreated, BatchExec, BatchExecuted, BatchItem, CreateSandbox, ExecResult,
    Outcome, Sandbox,
};
use ringfence_supervisor::{Command, Reply};

use super::exec::{begin, result};
use super::{Ask, Body, Handled, unexpected};
use crate::problem::Problem;

/// Items of a batch, and how many at a time: where nothing is said, and at most.
const MOST: usize = 256;
const AT_ONCE: usize = 8;
const MOST_AT_ONCE: usize = 64;

async fn each<I, T, F: Future<Output = Handled<T>>>(
    items: Vec<I>,
    concurrency: Option<usize>,
    one: impl Fn(I) -> F,
) -> Handled<Vec<Outcome<T>>> {
    if items.len() > MOST {
        return Err(Problem::invalid(format!("items: {} of at most {MOST}", items.len())));
    }
    let at_once = concurrency.unwrap_or(AT_ONCE);
    if !(1..=MOST_AT_ONCE).contains(&at_once) {
        return Err(Problem::invalid(format!("concurrency: not from 1 to {MOST_AT_ONCE}")));
    }
    let outcomes =
        stream::iter(items.into_iter().map(one)).buffered(at_once).map(|done| match done {
            Ok(result) => Outcome { result: Some(result), error: None },
            Err(problem) => Outcome { result: None, error: Some(problem.body()) },
        });
    Ok(outcomes.collect().await)
}

pub(crate) async fn create(
    ask: Ask,
    Body(BatchCreate { items, concurrency }): Body<BatchCreate>,
) -> Handled<Json<BatchCreated>> {
    let ask = &ask;
    let one = |made_of: CreateSandbox| async move {
        let made_of = Box::new(made_of);
        match ask.run(Command::Create { made_of, key: None }).await? {
            Reply::Sandbox(sandbox) => Ok::<Sandbox, _>(*sandbox),
            other => Err(unexpected(&other)),
        }
    };
    Ok(Json(BatchCreated { results: each(items, concurrency, one).await? }))
}

pub(crate) async fn exec(
    ask: Ask,
    Body(BatchExec { items, concurrency }): Body<BatchExec>,
) -> Handled<Json<BatchExecuted>> {
    let ask = &ask;
    let one = |BatchItem { sandbox, exec }: BatchItem| async move {
        if exec.background || exec.terminal.is_some() {
            return Err(Problem::invalid("a batch runs commands to their end"));
        }
        let exec = begin(ask, sandbox, exec, true).await?;
        Ok::<ExecResult, _>(result(&exec).await)
    };
    Ok(Json(BatchExecuted { results: each(items, concurrency, one).await? }))
}
