//! An expression in CEL: read, and evaluated in a thread of its own.
//!
//! The parser refuses what is nested deeply, and one that panics all the same takes its thread with it and nothing else.
//! A thread cannot be stopped: so what runs long is bounded by what it is given (`LOOPS`, the objects), and the next
//! round waits for it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use cel::common::ast::{EntryExpr, Expr};
use cel::{Context, ExecutionError, IdedExpr, Program, Value};
use serde_json::Value as Json;
use tokio::sync::{Mutex, oneshot};
use tokio::time::timeout;

/// A thousand objects with one another take a second; one loop more takes a quarter of an hour.
const LOOPS: usize = 2;
/// For a second's work on a machine that does other work too.
const LIMIT: Duration = Duration::from_secs(10);
/// A thread's, of which little is touched: parsers recur.
const STACK: usize = 32 << 20;

/// Evaluates one expression.
pub(super) struct Expression {
    text: String,
    /// Held while it is evaluated, by the thread that does.
    busy: Arc<Mutex<()>>,
}

impl Expression {
    pub(super) fn new(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            busy: Arc::default(),
        }
    }

    /// Whether it can be evaluated at all, and looks at what it is given.
    pub(super) async fn check(&self, variable: &'static str) -> Result<(), String> {
        let text = self.text.clone();
        self.aside(move || {
            let program = compile(&text)?;
            let seen: HashSet<String> = program
                .references()
                .variables()
                .iter()
                .map(ToString::to_string)
                .collect();
            if !seen.contains(variable) {
                return Err(format!("it does not look at `{variable}`"));
            }
            match loops(program.expression()) {
                n if n > LOOPS => Err(format!(
                    "{n} loops lie within one another, all(), exists(), map() and their like; {LOOPS} may"
                )),
                _ => Ok(()),
            }
        })
        .await?
    }

    /// True or false, or why neither is known.
    pub(super) async fn evaluate(&self, variable: &'static str, seen: Json) -> Result<bool, String> {
        let text = self.text.clone();
        self.aside(move || {
            let program = compile(&text)?;
            let mut context = Context::default();
            context.add_variable_from_value(variable, value(seen));
            match program.execute(&context) {
                Ok(Value::Bool(found)) => Ok(found),
                Ok(other) => Err(format!("it gives a {}, not true or false", other.type_of())),
                Err(error) => Err(told(&error)),
            }
        })
        .await?
    }

    async fn aside<T: Send + 'static>(&self, deed: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
        let busy = Arc::clone(&self.busy)
            .try_lock_owned()
            .map_err(|_| "the last round is still being evaluated".to_owned())?;
        let (tell, told) = oneshot::channel();
        let work = move || {
            let _busy = busy;
            let _ = tell.send(deed());
        };
        std::thread::Builder::new()
            .name("expression".to_owned())
            .stack_size(STACK)
            .spawn(work)
            .map_err(|error| format!("no thread for it: {error}"))?;
        match timeout(LIMIT, told).await {
            Ok(Ok(told)) => Ok(told),
            Ok(Err(_)) => Err("its evaluation broke off".to_owned()),
            Err(_) => Err(format!("it was not evaluated within {} s", LIMIT.as_secs())),
        }
    }
}

/// Whole numbers are signed, as in Kubernetes: CEL does not reckon with one of each.
fn value(json: Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(truth) => Value::Bool(truth),
        Json::Number(number) => match number.as_i64() {
            Some(whole) => Value::Int(whole),
            None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => text.into(),
        Json::Array(all) => all.into_iter().map(value).collect::<Vec<_>>().into(),
        Json::Object(fields) => {
            let fields = fields.into_iter().map(|(name, field)| (name, value(field)));
            fields.collect::<HashMap<_, _>>().into()
        }
    }
}

fn compile(text: &str) -> Result<Program, String> {
    // The first line: the rest is a picture of it.
    Program::compile(text).map_err(|errors| {
        let text = errors.to_string();
        let first = text.lines().next().unwrap_or_default();
        first.trim_start_matches("ERROR: <input>:").to_owned()
    })
}

/// How many loops lie within one another.
fn loops(expression: &IdedExpr) -> usize {
    match &expression.expr {
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => 0,
        Expr::Call(call) => most(call.args.iter().chain(call.target.as_deref())),
        Expr::Select(select) => loops(&select.operand),
        Expr::List(list) => most(list.elements.iter()),
        Expr::Map(map) => entries(map.entries.iter().map(|e| &e.expr)),
        Expr::Struct(of) => entries(of.entries.iter().map(|e| &e.expr)),
        Expr::Comprehension(it) => {
            let within = 1 + most([&it.accu_init, &it.loop_cond, &it.loop_step, &it.result].into_iter());
            within.max(loops(&it.iter_range))
        }
    }
}

fn most<'a>(all: impl Iterator<Item = &'a IdedExpr>) -> usize {
    all.map(loops).max().unwrap_or(0)
}

fn entries<'a>(all: impl Iterator<Item = &'a EntryExpr>) -> usize {
    let each = all.map(|entry| match entry {
        EntryExpr::StructField(field) => loops(&field.value),
        EntryExpr::MapEntry(entry) => loops(&entry.key).max(loops(&entry.value)),
    });
    each.max().unwrap_or(0)
}

/// Never what stands in the objects: a status is read by many.
fn told(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(name) => format!("there is no field {name}: ask has() first"),
        ExecutionError::UndeclaredReference(name) => format!("nothing is called {name}"),
        ExecutionError::NoSuchOverload(what) => what.to_string(),
        ExecutionError::InvalidArgumentCount { .. }
        | ExecutionError::UnexpectedType { .. }
        | ExecutionError::MissingArgumentOrTarget => error.to_string(),
        ExecutionError::FunctionError { function, .. } => format!("{function}() failed"),
        ExecutionError::IndexOutOfBounds(_) => "an index is beyond its list".to_owned(),
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => {
            "it divides by 0".to_owned()
        }
        ExecutionError::Overflow(..) => "a number is too large".to_owned(),
        _ => "it compares or joins values of different types".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    async fn check(text: &str) -> Result<(), String> {
        Expression::new(text).check("objects").await
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_refused_with_its_place() {
        for text in [
            "1 +", "(", ")", ".", "/", "", "a ? b", "'\\u{}'", "\"abc", "[1,", "{a:", "? ?", "))))", "a.b(c",
        ] {
            let why = check(text).await.unwrap_err();
            assert!(why.starts_with("1:"), "{text}: {why}");
        }
        assert!(check(&"(".repeat(2000)).await.is_err());
        assert!(
            check(&format!("{}objects{}", "[".repeat(900), "]".repeat(900)))
                .await
                .is_err()
        );
        assert_eq!(
            check("object.ready").await.unwrap_err(),
            "it does not look at `objects`"
        );
        let nested = "objects.all(a, objects.all(b, objects.all(c, a == b && b == c)))";
        assert!(check(nested).await.unwrap_err().starts_with("3 loops"));
        check("objects.all(a, objects.exists(b, a == b)) && objects.all(c, c.x)")
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn true_is_true_and_everything_else_says_why() {
        let objects = json!([{"name": "a", "ready": 2, "secret": "hunter2"}, {"name": "b", "ready": 3}]);
        for (text, wanted) in [
            ("objects.all(o, o.ready >= 2)", Ok(true)),
            ("objects.all(o, o.ready > 2.5)", Ok(false)),
            ("objects.all(o, o.ready - 1 >= 1)", Ok(true)),
            ("objects.exists(o, has(o.secret))", Ok(true)),
            ("objects.filter(o, o.name.startsWith('a')).size() == 1", Ok(true)),
            ("objects.all(o, o.age == 1)", Err("there is no field age")),
            ("objects.all(o, p.age == 1)", Err("nothing is called p")),
            ("objects[0].ready", Err("it gives a int")),
            (
                "objects[0].ready + objects[0].secret == 1",
                Err("different types"),
            ),
            ("objects[7] == 1", Err("beyond")),
            (
                "timestamp(objects[0].secret) == timestamp('2026-01-01T00:00:00Z')",
                Err("timestamp() failed"),
            ),
            ("{objects[0].secret: 1, 'hunter2': 2}.size() == 1", Err("")),
        ] {
            match (
                Expression::new(text).evaluate("objects", objects.clone()).await,
                wanted,
            ) {
                (Ok(found), Ok(wanted)) => assert_eq!(found, wanted, "{text}"),
                (Err(why), Err(wanted)) => {
                    assert!(why.contains(wanted), "{text}: {why}");
                    assert!(!why.contains("hunter2"), "{text}: {why}");
                }
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
    }
}
