//! `flux keys`: who may do what. A key is shown once, by the command that makes it.

use flux_protocol::Scope;
use serde_json::{Value, json};

use super::{
    Context,
    shown::{NOTHING, age},
};
use crate::{
    error::CliError,
    model::rows,
    table::{Cell, Table},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Make a key; it is printed once, and kept nowhere
    Create {
        /// What you call it: who or what uses it
        name: String,
        /// admin, deploy, read, or invoke:FUNCTION, in which `*` stands for any characters; several times for several
        #[arg(long = "scope", required = true, value_name = "SCOPE", value_parser = |text: &str| text.parse::<Scope>())]
        scopes: Vec<Scope>,
        /// Such as 90d; without it the key lasts until it is revoked
        #[arg(long, value_name = "TIME")]
        expires_in: Option<String>,
        /// Requests a second
        #[arg(long, value_name = "N")]
        requests_per_second: Option<u32>,
    },
    /// List keys, oldest first
    List,
    /// Give a key a new text; the old one works a while longer
    Rotate {
        /// Its id, as `flux keys list` prints it
        id: String,
        /// How long the old one works [default: 24h]
        #[arg(long, value_name = "TIME")]
        overlap: Option<String>,
    },
    /// Make a key open nothing any more, at once
    Revoke { id: String },
}

pub(crate) async fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    match args.what {
        What::Create { name, scopes, expires_in, requests_per_second } => {
            let mut request = json!({ "name": name, "scopes": scopes });
            if let Some(expires_in) = expires_in {
                request["expires_in"] = expires_in.into();
            }
            if let Some(rate) = requests_per_second {
                request["requests_per_second"] = rate.into();
            }
            show(&cx.client.post(&["keys"], &[], &request).await?, cx);
            Ok(())
        }
        What::List => list(cx).await,
        What::Rotate { id, overlap } => {
            let request = overlap.map_or_else(|| json!({}), |overlap| json!({ "overlap": overlap }));
            show(&cx.client.post(&["keys", &id, "rotate"], &[], &request).await?, cx);
            Ok(())
        }
        What::Revoke { id } => {
            let answer = cx.client.delete(&["keys", &id], &[]).await?;
            if cx.out.json {
                cx.out.json(&answer);
            } else {
                cx.out.line(format!("{id} revoked"));
            }
            Ok(())
        }
    }
}

/// The key alone on standard output, for `KEY=$(flux keys create …)`.
fn show(answer: &Value, cx: &Context) {
    if cx.out.json {
        cx.out.json(answer);
        return;
    }
    let text = |field: &str| answer.get(field).and_then(Value::as_str).unwrap_or(NOTHING);
    cx.out.line(text("key"));
    let until = answer.get("previous_until").and_then(Value::as_str);
    let previous = until.map(|until| format!("; the one before works until {until}")).unwrap_or_default();
    cx.out.note(format!("this is key {} ({}); it cannot be shown again{previous}", text("id"), text("name")));
}

async fn list(cx: &Context) -> Result<(), CliError> {
    let answer = cx.client.get(&["keys"], &[]).await?;
    if cx.out.json {
        cx.out.json(&answer);
        return Ok(());
    }
    let mut table = Table::new(&["ID", "NAME", "SCOPES", ">AGE", ">USED", "EXPIRES", ">PER S", "MADE BY"]);
    for row in rows(&answer, "keys") {
        let text = |field: &str| row.get(field).and_then(Value::as_str).unwrap_or(NOTHING).to_owned();
        let time = |field: &str| age(row.get(field).and_then(|at| serde_json::from_value(at.clone()).ok()));
        let scopes: Vec<&str> = rows(row, "scopes").iter().filter_map(Value::as_str).collect();
        table.row([
            Cell::from(text("id")),
            text("name").into(),
            scopes.join(" ").into(),
            time("created_at").into(),
            time("last_used_at").into(),
            text("expires_at").into(),
            row.get("requests_per_second").map_or_else(|| NOTHING.to_owned(), Value::to_string).into(),
            text("created_by").into(),
        ]);
    }
    table.print(cx.out);
    Ok(())
}
