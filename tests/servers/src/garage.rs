//! Garage 2.5, an S3 server which is a program of its own: one node, or a cluster of three that keeps each object
//! three times.
//!
//! What to know of it: it has no conditional writes. `If-None-Match: *` is neither honoured nor refused on `PutObject`
//! and `CompleteMultipartUpload`: the object is overwritten and the answer is `200`. Tests here hold it to that, so
//! that a version which learns it is noticed.
//!
//! Invariants: it listens on loopback only; ports and data stay the same from [`Garage::kill`] to
//! [`Garage::restart`]; a server that a failed test leaves behind is killed.

use std::fs::{self, File};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};

use crate::access::{Access, AccessKey};
use crate::peer::{free_ports, peer};

const REGION: &str = "garage";
const BUCKET: &str = "mover";

/// How often the start is looked at, and how many times before it counts as failed (2 minutes: a slow disk).
const READY_POLL: Duration = Duration::from_millis(50);
const READY_POLLS: u32 = 2400;

/// Known to whoever reads this: the nodes of a test recognise each other by it.
const RPC_SECRET: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0";

/// The version that `tests/run` installs: a build for what it does, not for how fast.
const VERSION: &str = "2.5.0";

/// A server of one node with an empty bucket and a key that may do anything in it; it is killed when dropped.
#[derive(Debug)]
pub struct Garage {
    node: Node,
    bucket_id: String,
    access: Access,
}

/// Three nodes that keep every object three times; they are killed when dropped.
#[derive(Debug)]
pub struct GarageCluster {
    nodes: Vec<Node>,
    accesses: Vec<Access>,
}

impl Garage {
    /// Starts a server whose data is in `dir`: the build that tests have.
    pub fn start(dir: &Path) -> Self {
        Garage::start_program(&Garage::program(), dir)
    }

    /// The build that tests have.
    pub fn program() -> PathBuf {
        peer("garage", VERSION)
    }

    /// The same as [`Garage::start`], of another build.
    pub fn start_program(program: &Path, dir: &Path) -> Self {
        let node = Node::create(program, &dir.join("garage"), 1);
        node.start();
        lay_out(std::slice::from_ref(&node));
        let (bucket_id, key) = bucket_and_key(&node);
        Garage {
            access: node.access(&key),
            node,
            bucket_id,
        }
    }

    /// How it is reached, by the key that may do anything in the bucket.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Ends the server by SIGKILL.
    pub fn kill(&self) {
        self.node.kill();
    }

    /// Starts the server again where it was, after [`Garage::kill`].
    pub fn restart(&self) {
        self.node.start();
    }

    /// A new key that may read and list the bucket, and not write.
    pub fn read_only_key(&self) -> AccessKey {
        let key = new_key(&self.node, "read-only");
        allow(&self.node, &self.bucket_id, &key, false);
        key
    }
}

impl GarageCluster {
    /// Starts three servers whose data is in `dir`.
    pub fn start(dir: &Path) -> Self {
        const NODES: usize = 3;
        let program = Garage::program();
        let nodes: Vec<Node> = (0..NODES)
            .map(|i| Node::create(&program, &dir.join(format!("garage-{i}")), NODES))
            .collect();
        for node in &nodes {
            node.start();
        }
        for other in &nodes[1..] {
            nodes[0].run(&["node", "connect", &other.full_id()]);
        }
        lay_out(&nodes);
        let (_, key) = bucket_and_key(&nodes[0]);
        let accesses = nodes.iter().map(|node| node.access(&key)).collect();
        GarageCluster { nodes, accesses }
    }

    /// How one of the nodes 0, 1 and 2 is reached, by the key that may do anything in the bucket.
    pub fn access(&self, node: usize) -> &Access {
        &self.accesses[node]
    }

    /// Ends a node by SIGKILL. The cluster works on as long as two nodes live.
    pub fn kill(&self, node: usize) {
        self.nodes[node].kill();
    }

    /// Starts a node again where it was, and waits until all nodes that live are connected.
    pub fn restart(&self, node: usize) {
        self.nodes[node].start();
        let live: Vec<&Node> = self
            .nodes
            .iter()
            .filter(|node| node.child().is_some())
            .collect();
        // They would find each other by themselves, within a minute; each uses connections of its own making only.
        let id = self.nodes[node].full_id();
        for other in live
            .iter()
            .filter(|other| other.rpc_port != self.nodes[node].rpc_port)
        {
            other.run(&["node", "connect", &id]);
            self.nodes[node].run(&["node", "connect", &other.full_id()]);
        }
        for node in &live {
            node.wait_until_connected(live.len());
        }
    }
}

/// One process, its directory and its ports.
#[derive(Debug)]
struct Node {
    program: PathBuf,
    dir: PathBuf,
    s3_port: u16,
    rpc_port: u16,
    child: Mutex<Option<Child>>,
}

impl Node {
    fn create(program: &Path, dir: &Path, replicas: usize) -> Self {
        fs::create_dir_all(dir).expect("the directory can be written to");
        let [s3_port, rpc_port] = free_ports();
        let dir = dir.canonicalize().expect("the directory exists");
        let at = dir.display();
        let config = format!(
            "metadata_dir = \"{at}/meta\"\n\
             data_dir = \"{at}/data\"\n\
             db_engine = \"lmdb\"\n\
             replication_factor = {replicas}\n\
             rpc_bind_addr = \"127.0.0.1:{rpc_port}\"\n\
             rpc_public_addr = \"127.0.0.1:{rpc_port}\"\n\
             rpc_secret = \"{RPC_SECRET}\"\n\
             [s3_api]\n\
             s3_region = \"{REGION}\"\n\
             api_bind_addr = \"127.0.0.1:{s3_port}\"\n"
        );
        fs::write(dir.join("garage.toml"), config).expect("the directory can be written to");
        Node {
            program: program.to_owned(),
            dir,
            s3_port,
            rpc_port,
            child: Mutex::new(None),
        }
    }

    fn access(&self, key: &AccessKey) -> Access {
        Access {
            endpoint: format!("http://127.0.0.1:{}", self.s3_port),
            region: REGION.to_owned(),
            bucket: BUCKET.to_owned(),
            key: key.clone(),
            ca_file: None,
        }
    }

    /// Starts the process and waits until it answers both its S3 clients and its own command line.
    fn start(&self) {
        assert!(self.child().is_none(), "the server runs already");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file())
            .expect("log file");
        let child = self
            .command()
            .arg("server")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log file"))
            .stderr(log)
            .spawn()
            .expect("the server starts");
        *self.child() = Some(child);
        self.wait("start", || self.answers());
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().expect("nobody panics while it is held")
    }

    fn answers(&self) -> bool {
        TcpStream::connect(("127.0.0.1", self.s3_port)).is_ok()
            && TcpStream::connect(("127.0.0.1", self.rpc_port)).is_ok()
            && self.try_run(&["status"]).is_ok()
    }

    /// Waits until this node is connected to as many nodes, itself among them.
    fn wait_until_connected(&self, nodes: usize) {
        self.wait("find the others", || {
            self.try_run(&["json-api", "GetClusterHealth"])
                .is_ok_and(|text| from_json(&text)["connectedNodes"] == nodes)
        });
    }

    fn wait(&self, what: &str, done: impl Fn() -> bool) {
        for _ in 0..READY_POLLS {
            if done() {
                return;
            }
            let ended = match self.child().as_mut() {
                Some(child) => child.try_wait().expect("a child can be waited for"),
                None => panic!("Garage was killed before it did {what}"),
            };
            if let Some(status) = ended {
                panic!("Garage ended with {status}:\n{}", self.log());
            }
            std::thread::sleep(READY_POLL);
        }
        panic!("Garage does not {what}:\n{}", self.log());
    }

    fn kill(&self) {
        if let Some(mut child) = self.child().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// `id@address`, by which other nodes find this one.
    fn full_id(&self) -> String {
        self.run(&["node", "id", "-q"]).trim().to_owned()
    }

    /// Calls the administration interface.
    fn call(&self, name: &str, argument: &Value) -> Value {
        from_json(&self.run(&["json-api", name, &argument.to_string()]))
    }

    fn run(&self, args: &[&str]) -> String {
        self.try_run(args)
            .unwrap_or_else(|error| panic!("garage {args:?}: {error}\n{}", self.log()))
    }

    fn try_run(&self, args: &[&str]) -> Result<String, String> {
        let output = self.command().args(args).stdin(Stdio::null()).output();
        let output = output.expect("the program can be run");
        if output.status.success() {
            Ok(String::from_utf8(output.stdout).expect("its output is text"))
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        // Warnings only: what is said in a log would be all that many tests wait for.
        command
            .env("RUST_LOG", "garage=info,warn")
            .arg("-c")
            .arg(self.dir.join("garage.toml"));
        command
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Gives every node an equal role in the cluster.
fn lay_out(nodes: &[Node]) {
    let ids: Vec<String> = nodes.iter().map(Node::full_id).collect();
    for (i, id) in ids.iter().enumerate() {
        let bare = id.split('@').next().expect("an id");
        let zone = format!("zone-{i}");
        nodes[0].wait("know all nodes", || {
            nodes[0]
                .try_run(&["layout", "assign", "-z", &zone, "-c", "10G", bare])
                .is_ok()
        });
    }
    nodes[0].run(&["layout", "apply", "--version", "1"]);
    for node in nodes {
        node.wait_until_connected(nodes.len());
        // It serves requests once it has heard of the layout.
        node.wait("hear of the layout", || {
            node.try_run(&["json-api", "GetClusterHealth"])
                .is_ok_and(|text| from_json(&text)["status"] == "healthy")
        });
    }
}

/// Makes the bucket and the key that may do anything in it; returns the bucket's id and the key.
fn bucket_and_key(node: &Node) -> (String, AccessKey) {
    let key = new_key(node, "all");
    let bucket = node.call("CreateBucket", &json!({ "globalAlias": BUCKET }));
    let bucket_id = text(&bucket, "id");
    allow(node, &bucket_id, &key, true);
    (bucket_id, key)
}

fn new_key(node: &Node, name: &str) -> AccessKey {
    let key = node.call("CreateKey", &json!({ "name": name }));
    AccessKey {
        id: text(&key, "accessKeyId"),
        secret: text(&key, "secretAccessKey"),
    }
}

fn allow(node: &Node, bucket_id: &str, key: &AccessKey, all: bool) {
    let permissions = json!({ "read": true, "write": all, "owner": all });
    node.call(
        "AllowBucketKey",
        &json!({ "bucketId": bucket_id, "accessKeyId": key.id, "permissions": permissions }),
    );
}

fn from_json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

fn text(value: &Value, field: &str) -> String {
    value[field]
        .as_str()
        .unwrap_or_else(|| panic!("no {field} in {value}"))
        .to_owned()
}
