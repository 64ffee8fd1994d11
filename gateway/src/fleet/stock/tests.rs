//! Stocks against a peer that dials within its limit.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, AtomicUsize};

use common::conduit::Conduit;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::service::service_fn;

use super::*;

struct Fleet {
    stocks: Arc<Stocks>,
    link: Arc<NodeLink>,
    dialled: Arc<AtomicUsize>,
}

impl Fleet {
    /// An agent that opens one connection, then as many as it is asked for, and never more than `max` at once.
    fn start(max: u32) -> Self {
        let fleet = Self {
            stocks: Arc::new(Stocks::new()),
            link: Arc::new(NodeLink::new(NodeId::new(), 0, Arc::default())),
            dialled: Arc::default(),
        };
        fleet.link.max_connections.store(max, Ordering::Relaxed);
        let (stocks, link, dialled) = (fleet.stocks.clone(), fleet.link.clone(), fleet.dialled.clone());
        tokio::spawn(async move {
            let open = Arc::new(AtomicU32::new(0));
            let mut wanted = 1;
            loop {
                for _ in 0..wanted {
                    if open.load(Ordering::Relaxed) >= max {
                        break;
                    }
                    open.fetch_add(1, Ordering::Relaxed);
                    dialled.fetch_add(1, Ordering::Relaxed);
                    let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
                    let open = open.clone();
                    tokio::spawn(async move {
                        let io = TokioIo::new(theirs);
                        let answer = |_| async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("done")))) };
                        let server = hyper::server::conn::http1::Builder::new()
                            .header_read_timeout(None)
                            .serve_connection(io, service_fn(answer));
                        server.await.ok();
                        open.fetch_sub(1, Ordering::Relaxed);
                    });
                    stocks.deliver(&link, Conduit::from(ours).loosen().unwrap());
                }
                link.ring.notified().await;
                wanted = link.take_wanted();
            }
        });
        fleet
    }

    async fn take(&self, stock: &Arc<Stock>) -> Lease {
        self.stocks.take(stock, &self.link).await.expect("a connection in time")
    }
}

async fn call(mut lease: Lease) {
    let request = Request::get("/").header("host", "node").body(Either::Right(Full::default())).unwrap();
    let answer = lease.sender.send_request(request).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "done");
    lease.give_back();
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let fleet = Fleet::start(10);
    let stock = fleet.stocks.open(Handle::current());
    for _ in 0..5 {
        call(fleet.take(&stock).await).await;
    }
    assert_eq!(fleet.dialled.load(Ordering::Relaxed), 1);
    fleet.stocks.close().await;
}

#[tokio::test]
async fn a_waiting_call_gets_what_comes_back() {
    let fleet = Fleet::start(1);
    let stock = fleet.stocks.open(Handle::current());
    let first = fleet.take(&stock).await;
    let (second, ()) = tokio::join!(fleet.take(&stock), async {
        tokio::task::yield_now().await;
        call(first).await;
    });
    call(second).await;
    assert_eq!(fleet.dialled.load(Ordering::Relaxed), 1);
    fleet.stocks.close().await;
}

#[tokio::test]
async fn a_rich_stock_gives_way_to_a_poor_one() {
    let fleet = Fleet::start(1);
    let (rich, poor) = (fleet.stocks.open(Handle::current()), fleet.stocks.open(Handle::current()));
    call(fleet.take(&rich).await).await;
    assert_eq!(rich.idle(fleet.link.node), 1);
    call(fleet.take(&poor).await).await;
    assert_eq!((rich.idle(fleet.link.node), poor.idle(fleet.link.node)), (0, 1));
    assert_eq!(fleet.dialled.load(Ordering::Relaxed), 2);
    fleet.stocks.close().await;
}

#[tokio::test]
async fn a_node_that_is_gone_has_nothing_left() {
    let fleet = Fleet::start(1);
    let stock = fleet.stocks.open(Handle::current());
    let busy = fleet.take(&stock).await;
    let (waiting, ()) = tokio::join!(fleet.stocks.take(&stock, &fleet.link), async {
        tokio::task::yield_now().await;
        fleet.stocks.forget(&fleet.link);
    });
    assert!(waiting.is_none());
    // What is under way ends as usual, and its connection serves no other link of the node.
    call(busy).await;
    assert_eq!(stock.idle(fleet.link.node), 0);
    fleet.stocks.close().await;
}

#[tokio::test]
async fn what_was_dialled_before_gets_no_more_calls() {
    let fleet = Fleet::start(3);
    let stock = fleet.stocks.open(Handle::current());
    let (busy, idle) = (fleet.take(&stock).await, fleet.take(&stock).await);
    call(idle).await;
    assert_eq!(stock.idle(fleet.link.node), 1);
    fleet.stocks.dial_anew(&fleet.link);
    assert_eq!(stock.idle(fleet.link.node), 0);
    // What is under way ends as usual.
    call(busy).await;
    assert_eq!(stock.idle(fleet.link.node), 0);
    call(fleet.take(&stock).await).await;
    assert_eq!((stock.idle(fleet.link.node), fleet.dialled.load(Ordering::Relaxed)), (1, 3));
    fleet.stocks.close().await;
}
