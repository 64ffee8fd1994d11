// An ordinary Express server: JSON, streams both ways, server-sent events, and a WebSocket that echoes.
const http = require('node:http');
const express = require('express');
const { WebSocketServer } = require('ws');

const app = express();

app.get('/', (request, response) => {
  const name = request.query.name ?? 'World';
  console.log(`greeting ${name}`); // goes to the function's logs, never into the answer
  response.json({ message: `Hello, ${name}!` });
});

app.post('/', express.json({ strict: false }), (request, response) => {
  response.json({ message: `Hello, ${request.body?.name ?? 'World'}!` });
});

// Counts what is uploaded, however much that is.
app.put('/upload', async (request, response) => {
  let bytes = 0;
  for await (const chunk of request) bytes += chunk.length;
  response.json({ bytes });
});

// Sends as many bytes as are asked for.
app.get('/download/:bytes', async (request, response) => {
  const chunk = Buffer.alloc(64 * 1024, 'x');
  let left = Number(request.params.bytes);
  response.type('application/octet-stream');
  while (left > 0 && !response.destroyed) {
    const part = chunk.subarray(0, Math.min(left, chunk.length));
    left -= part.length;
    if (!response.write(part)) {
      await new Promise((go) => response.once('drain', go).once('close', go));
    }
  }
  response.end();
});

// Tells the time, once for each interval.
app.get('/events', (request, response) => {
  response.set({ 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-cache' });
  let id = 0;
  const tell = () => response.write(`id: ${id++}\ndata: ${new Date().toISOString()}\n\n`);
  tell();
  const timer = setInterval(tell, Number(request.query.ms ?? 1000));
  response.on('close', () => clearInterval(timer));
});

const server = http.createServer(app);
new WebSocketServer({ server, path: '/echo' }).on('connection', (socket) => {
  socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary }));
});
server.listen(process.env.PORT);
