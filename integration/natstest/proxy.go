package natstest

import (
	"io"
	"net"
	"sync"
	"testing"
)

// Proxy passes TCP connections on to a server until it is told not to. Safe for
// concurrent use.
type Proxy struct {
	target   string
	listener net.Listener
	joined   sync.WaitGroup

	mu      sync.Mutex // guards what follows
	changed sync.Cond  // on mu: held or closed has changed
	open    map[net.Conn]struct{}
	refuse  bool
	held    bool
	closed  bool
}

// NewProxy returns a proxy to the server at target (host:port), which is closed
// at the end of the test.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{target: target, listener: l, open: map[net.Conn]struct{}{}}
	p.changed.L = &p.mu
	p.joined.Go(p.accept)
	t.Cleanup(p.Close)
	return p
}

// URL is where clients find the proxy.
func (p *Proxy) URL() string { return "nats://" + p.listener.Addr().String() }

// Cut breaks all connections of this moment, with whatever is on its way.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.open {
		c.Close()
	}
}

// Refuse says whether new connections are closed at once.
func (p *Proxy) Refuse(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = on
}

// Hold says whether what clients send is held back: it is lost with the
// connection, or delivered after Hold(false).
func (p *Proxy) Hold(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = on
	p.changed.Broadcast()
}

// Close ends the proxy and all its connections. Closing twice is legal.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.closed = true
	p.changed.Broadcast()
	p.mu.Unlock()
	p.listener.Close()
	p.Cut()
	p.joined.Wait()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.connect(client)
	}
}

func (p *Proxy) connect(client net.Conn) {
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		client.Close()
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refuse || p.closed {
		client.Close()
		server.Close()
		return
	}
	p.open[client], p.open[server] = struct{}{}, struct{}{}
	p.joined.Go(func() { p.pass(server, client, true) })
	p.joined.Go(func() { p.pass(client, server, false) })
}

// pass copies from one side to the other until either is closed, then closes
// both.
func (p *Proxy) pass(to, from net.Conn, holdable bool) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if holdable {
			p.awaitRelease()
		}
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				err = werr
			}
		}
		if err != nil {
			break
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range []io.Closer{to, from} {
		c.Close()
	}
	delete(p.open, to)
	delete(p.open, from)
}

func (p *Proxy) awaitRelease() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.held && !p.closed {
		p.changed.Wait()
	}
}
