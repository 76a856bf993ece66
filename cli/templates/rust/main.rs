//! {{name}}: counts what is in the payload.
//!
//! The payload arrives on standard input. What is printed to standard output is the result if it is JSON; what is
//! printed to standard error is shown beside it. An exit status other than 0 is a failure.

use std::io::Read;

fn main() -> std::io::Result<()> {
    let mut payload = String::new();
    std::io::stdin().read_to_string(&mut payload)?;
    let words = payload.split_whitespace().count();
    let attempt = std::env::var("FLUX_ATTEMPT").unwrap_or_else(|_| "1".to_owned());
    println!("{{\"bytes\": {}, \"words\": {words}, \"attempt\": {attempt}}}", payload.len());
    Ok(())
}
