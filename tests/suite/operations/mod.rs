//! Running the service: the embedded database, outages.

mod embedded;
mod outages;
