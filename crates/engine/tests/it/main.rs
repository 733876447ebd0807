//! Tests of the scheduler from outside: scenarios as text, a long random run, fairness.

mod auto;
mod blast;
mod continuing;
mod core;
mod explained;
mod fairness;
mod gate;
mod host;
mod memory;
mod misled;
mod planning;
mod random;
mod scenarios;
mod shares;
mod sharing;
mod similar;
mod tenants;
mod verification;
mod world;
