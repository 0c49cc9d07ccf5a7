//! The sockets: Docker's plugin protocol and the admin API. They translate and decide nothing.

pub mod server;
mod stream;
