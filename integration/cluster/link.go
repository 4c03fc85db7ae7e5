package cluster

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Link is a TCP way from one node to another's broker that a test can cut, heal and slow down.
type Link struct {
	listener net.Listener
	target   string
	delay    atomic.Int64 // nanoseconds that every byte is late
	mu       sync.Mutex
	cut      bool
	conns    map[net.Conn]bool
	wg       sync.WaitGroup
}

func newLink(t testing.TB, target string) *Link {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := &Link{listener: l, target: target, conns: map[net.Conn]bool{}}
	k.wg.Go(k.accept)
	t.Cleanup(func() {
		l.Close()
		k.Cut()
		k.wg.Wait()
	})
	return k
}

func (l *Link) addr() string { return l.listener.Addr().String() }

// Cut breaks the connections and lets no new ones through.
func (l *Link) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = true
	for c := range l.conns {
		c.Close()
	}
}

// Heal lets connections through again.
func (l *Link) Heal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = false
}

// Delay makes every byte arrive d later.
func (l *Link) Delay(d time.Duration) { l.delay.Store(int64(d)) }

func (l *Link) accept() {
	for {
		in, err := l.listener.Accept()
		if err != nil {
			return
		}
		l.wg.Go(func() { l.serve(in) })
	}
}

func (l *Link) serve(in net.Conn) {
	defer in.Close()
	if !l.keep(in) {
		return
	}
	defer l.drop(in)
	out, err := net.Dial("tcp", l.target)
	if err != nil {
		return
	}
	defer out.Close()
	if !l.keep(out) {
		return
	}
	defer l.drop(out)
	done := make(chan struct{}, 2)
	pump := func(to, from net.Conn) {
		l.pump(to, from)
		to.Close()
		from.Close()
		done <- struct{}{}
	}
	l.wg.Go(func() { pump(out, in) })
	l.wg.Go(func() { pump(in, out) })
	<-done
	<-done
}

func (l *Link) keep(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.cut {
		l.conns[c] = true
	}
	return !l.cut
}

func (l *Link) drop(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
}

// pump copies, each piece delayed by what Delay said when it came.
func (l *Link) pump(to io.Writer, from io.Reader) {
	type piece struct {
		due time.Time
		b   []byte
	}
	pieces := make(chan piece, 1024)
	var writer sync.WaitGroup
	writer.Go(func() {
		for p := range pieces {
			if d := time.Until(p.due); d > 0 {
				time.Sleep(d) // the delay itself
			}
			if _, err := to.Write(p.b); err != nil {
				for range pieces {
				}
				return
			}
		}
	})
	for {
		b := make([]byte, 32<<10)
		n, err := from.Read(b)
		if n > 0 {
			pieces <- piece{time.Now().Add(time.Duration(l.delay.Load())), b[:n]}
		}
		if err != nil {
			close(pieces)
			writer.Wait()
			return
		}
	}
}
