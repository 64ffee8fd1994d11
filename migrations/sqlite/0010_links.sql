-- Which gateways a node is linked to. Each gateway notes its own again and again; what it has not noted for long is over.

CREATE TABLE node_links (
  node_id BLOB NOT NULL,
  gateway_id BLOB NOT NULL,
  seen_at TIMESTAMP NOT NULL,
  PRIMARY KEY (node_id, gateway_id)
);
