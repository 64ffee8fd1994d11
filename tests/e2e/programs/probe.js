// A server for tests: each path does something that a server may do.
const http = require('node:http');
const crypto = require('node:crypto');

let open = 0;
let opened = 0;

const server = http.createServer(async (request, response) => {
  const url = new URL(request.url, 'http://x');
  response.setHeader('x-own', 'kept');
  switch (url.pathname) {
    case '/':
      console.log(`seen ${request.method} ${request.url}`);
      return response.end(JSON.stringify({ method: request.method, url: request.url, headers: request.headers, env: process.env }));
    case '/count':
      return response.end(JSON.stringify({ open, opened }));
    case '/forever': {
      open += 1;
      opened += 1;
      response.on('close', () => (open -= 1));
      return response.write('begun\n');
    }
    case '/silent':
      open += 1;
      opened += 1;
      response.on('close', () => (open -= 1));
      return;
    case '/begun-then-silent':
      return response.write('begun\n');
    case '/begun-then-crash':
      console.error('oh no');
      response.write('begun\n');
      return setTimeout(() => process.exit(7), 100);
    case '/crash':
      console.error('oh no');
      return process.exit(3);
    case '/hang-up':
      return request.socket.destroy();
    case '/memory': {
      const kept = [];
      for (;;) kept.push(Buffer.alloc(1 << 20, 1));
    }
    case '/status':
      response.statusCode = 418;
      response.setHeader('set-cookie', ['a=1', 'b=2']);
      response.setHeader('dartcloud-outcome', 'crashed');
      response.setHeader('keep-alive', 'timeout=9');
      response.setHeader('content-length', 15);
      return response.end('short and stout');
    case '/echo': {
      response.setHeader('content-type', request.headers['content-type'] ?? 'text/plain');
      for await (const chunk of request) response.write(chunk);
      return response.end();
    }
    case '/ticks': {
      let left = 30;
      const clock = setInterval(() => {
        response.write('tick\n');
        left -= 1;
        if (left > 0) return;
        clearInterval(clock);
        response.end('end\n');
      }, 100);
      return;
    }
    case '/slow':
      return setTimeout(() => response.end('slow'), 1000);
    default:
      response.statusCode = 404;
      return response.end('nothing here');
  }
});

// A WebSocket that echoes short texts, and otherwise only bytes.
server.on('upgrade', (request, socket) => {
  const accept = crypto.createHash('sha1').update(request.headers['sec-websocket-key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11').digest('base64');
  socket.write(`HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`);
  open += 1;
  opened += 1;
  // Node.js leaves it to the server to close its side, too.
  socket.on('close', () => (open -= 1)).on('error', () => {}).on('end', () => socket.end());
  socket.on('data', (frame) => {
    const length = frame[1] & 0x7f;
    const mask = frame.subarray(2, 6);
    const text = Buffer.from(frame.subarray(6, 6 + length).map((byte, at) => byte ^ mask[at % 4]));
    socket.write(Buffer.concat([Buffer.from([0x81, length]), text]));
  });
});
server.listen(process.env.PORT);
