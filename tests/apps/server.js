// The application behind node: as main.py, without WebSockets, which node's own http module does not speak. With H2C set it speaks
// HTTP/2.
'use strict';

const http = require(process.env.H2C ? 'http2' : 'http');

const worker = process.env.EDGE_WORKER;
const pattern = Buffer.from(Array.from({ length: 65536 }, (_, at) => at % 256));

const server = http.createServer((request, response) => {
  const json = (value) => {
    response.setHeader('Content-Type', 'application/json');
    response.end(JSON.stringify(value));
  };
  const [, route, number] = request.url.split('/');
  if (route === 'info') {
    const forwardedFor = request.headers['x-forwarded-for'];
    const forwardedProto = request.headers['x-forwarded-proto'];
    json({
      scheme: forwardedProto,
      client: forwardedFor,
      host: request.headers.host ?? request.authority,
      forwarded_proto: forwardedProto,
      forwarded_for: forwardedFor,
      worker,
      pid: process.pid,
    });
  } else if (route === 'upload') {
    let bytes = 0;
    let sum = 0;
    request.on('data', (chunk) => {
      bytes += chunk.length;
      for (const byte of chunk) sum += byte;
    });
    request.on('end', () => json({ bytes, sum }));
  } else if (route === 'download') {
    let left = Number(number);
    response.setHeader('Content-Type', 'application/octet-stream');
    response.setHeader('Content-Length', left);
    const write = () => {
      while (left > 0) {
        const chunk = pattern.subarray(0, Math.min(left, pattern.length));
        left -= chunk.length;
        if (!response.write(chunk) && left > 0) {
          response.once('drain', write);
          return;
        }
      }
      response.end();
    };
    write();
  } else if (route === 'events') {
    response.setHeader('Content-Type', 'text/event-stream');
    let next = 0;
    const send = () => {
      response.write(`data: ${next}\n\n`);
      next += 1;
      if (next === 3) response.end();
      else setTimeout(send, 300);
    };
    send();
  } else if (route === 'endless') {
    response.setHeader('Content-Type', 'text/event-stream');
    const more = setInterval(() => response.write('data: more\n\n'), 100);
    response.on('close', () => clearInterval(more));
  } else if (route === 'slow') {
    setTimeout(() => json({ slept_ms: Number(number), worker }), Number(number));
  } else {
    json({ hello: 'world' });
  }
});

server.listen(process.env.PORT, '127.0.0.1');
