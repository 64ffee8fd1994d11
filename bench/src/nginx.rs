//! The control of the edge: nginx, one worker, as a plain proxy that keeps its connections to the upstream.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::child::{Child, free_address, pinned};
use crate::http1::{Address, Connection};
use crate::stage::Stage;

/// How long it may take to listen.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// A running nginx.
pub(crate) struct Nginx {
    process: Child,
    pub(crate) address: Address,
}

impl Nginx {
    /// On the server's core, before `upstream`, on a TCP address.
    pub(crate) fn start(stage: &Stage, upstream: &Address) -> Result<Self> {
        Self::listening(stage, upstream, Address::Tcp(free_address()?))
    }

    /// The same on a Unix socket, as a hop behind another.
    pub(crate) fn behind(stage: &Stage, upstream: &Address) -> Result<Self> {
        let socket = stage.folder()?.join("nginx.sock");
        Self::listening(stage, upstream, Address::Unix(socket))
    }

    fn listening(stage: &Stage, upstream: &Address, address: Address) -> Result<Self> {
        let folder = stage.folder()?;
        std::fs::write(folder.join("nginx.conf"), configuration(&folder, upstream, &address))?;
        let mut command = pinned(&stage.cores.server, Path::new("nginx"));
        command.arg("-p").arg(&folder).arg("-c").arg(folder.join("nginx.conf")).args(["-e", "stderr"]);
        let mut process = Child::spawn(command, "nginx", &folder)?;
        process.wait_until(READY_WITHIN, || Connection::open(&address).is_ok())?;
        Ok(Self { process, address })
    }

    /// The master's process; the worker is its child.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }
}

/// Nothing that costs: no log, as many requests on a connection as come, and none of the headers that it may add.
fn configuration(folder: &Path, upstream: &Address, address: &Address) -> String {
    let named = |address: &Address| match address {
        Address::Tcp(address) => address.to_string(),
        Address::Unix(socket) => format!("unix:{}", socket.display()),
    };
    let (folder, upstream, address) = (folder.display(), named(upstream), named(address));
    format!(
        "daemon off;
user root;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream node {{
    server {upstream};
    keepalive 64;
    keepalive_requests 1000000000;
  }}
  server {{
    listen {address};
    location / {{
      proxy_pass http://node;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
    }}
  }}
}}
"
    )
}
