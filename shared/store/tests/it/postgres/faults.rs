//! What a server does that goes away, hangs, or is another's.
