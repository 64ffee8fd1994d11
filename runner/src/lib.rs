//! What the runner and the node agent both have to know: the frames that they exchange. The runner itself is the
//! program `dartcloud-runner`.

pub mod wire;
