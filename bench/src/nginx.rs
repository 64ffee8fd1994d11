//! The control of the edge: nginx, one worker, as a plain proxy to a Unix socket whose connections it keeps.

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
    /// On the server's core, before the upstream at `socket`.
    pub(crate) fn start(stage: &Stage, socket: &Path) -> Result<Self> {
        let folder = stage.folder()?;
        let address = free_address()?;
        std::fs::write(folder.join("nginx.conf"), configuration(&folder, socket, &address.to_string()))?;
        let mut command = pinned(&stage.cores.server, Path::new("nginx"));
        command.arg("-p").arg(&folder).arg("-c").arg(folder.join("nginx.conf")).args(["-e", "stderr"]);
        let mut process = Child::spawn(command, "nginx", &folder)?;
        let address = Address::Tcp(address);
        process.wait_until(READY_WITHIN, || Connection::open(&address).is_ok())?;
        Ok(Self { process, address })
    }

    /// The master's process; the worker is its child.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }
}

/// Nothing that costs: no log, as many requests on a connection as come, and none of the headers that it may add.
fn configuration(folder: &Path, socket: &Path, address: &str) -> String {
    let (folder, socket) = (folder.display(), socket.display());
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
    server unix:{socket};
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
