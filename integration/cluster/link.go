package cluster

import (
	"context"
	"io"
	"math"
	"math/rand"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Link is a TCP way from one node to another's broker that a test can cut, heal, slow down, and make worse.
type Link struct {
	listener net.Listener
	target   string
	delay    atomic.Int64  // nanoseconds that every byte is late
	loss     atomic.Uint64 // share of packets that are lost, as bits of a float64
	mu       sync.Mutex
	cut      bool
	rewrite  [2]*strings.Replacer // by Direction; nil: bytes go on as they are
	mute     [2]chan struct{}     // by Direction: closed when bytes go on; nil: they do
	conns    map[net.Conn]context.CancelFunc
	wg       sync.WaitGroup
}

// Direction is one of a link's.
type Direction int

// The directions: what the node sends to the other one's broker, and what it gets from there.
const (
	There Direction = iota
	Back
)

func newLink(t testing.TB, target string) *Link {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := &Link{listener: l, target: target, conns: map[net.Conn]context.CancelFunc{}}
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
	l.reset()
}

// Heal takes away whatever was done to the link.
func (l *Link) Heal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = false
	l.delay.Store(0)
	l.loss.Store(0)
	l.rewrite = [2]*strings.Replacer{}
	for d, held := range l.mute {
		if held != nil {
			close(held)
			l.mute[d] = nil
		}
	}
}

// Delay makes every byte arrive d later.
func (l *Link) Delay(d time.Duration) { l.delay.Store(int64(d)) }

// Lose loses a share of the packets. As TCP does, they are sent again after a while, and hold up what is behind them.
func (l *Link) Lose(share float64) { l.loss.Store(math.Float64bits(share)) }

// Mute holds back what is sent in one direction until the link is healed; connections stay open.
func (l *Link) Mute(d Direction) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mute[d] == nil {
		l.mute[d] = make(chan struct{})
	}
}

// Rewrite replaces text in what is sent in one direction, for what a test would otherwise need other versions of the programs for.
// The new text is as long as the old one; a text of which a part comes alone is let through.
func (l *Link) Rewrite(d Direction, from, to string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rewrite[d] = strings.NewReplacer(from, to)
}

func (l *Link) rewritten(d Direction, b []byte) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rewrite[d] == nil {
		return b
	}
	return []byte(l.rewrite[d].Replace(string(b)))
}

// Reset breaks the connections; new ones are let through.
func (l *Link) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reset()
}

func (l *Link) reset() {
	for c, end := range l.conns {
		end()
		c.Close()
	}
}

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
	ctx, end := context.WithCancel(context.Background())
	defer end()
	if !l.keep(in, end) {
		return
	}
	defer l.drop(in)
	out, err := net.Dial("tcp", l.target)
	if err != nil {
		return
	}
	defer out.Close()
	if !l.keep(out, end) {
		return
	}
	defer l.drop(out)
	done := make(chan struct{}, 2)
	pump := func(to, from net.Conn, d Direction) {
		l.pump(ctx, to, from, d)
		to.Close()
		from.Close()
		done <- struct{}{}
	}
	l.wg.Go(func() { pump(out, in, There) })
	l.wg.Go(func() { pump(in, out, Back) })
	<-done
	<-done
}

func (l *Link) keep(c net.Conn, end context.CancelFunc) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.cut {
		l.conns[c] = end
	}
	return !l.cut
}

func (l *Link) drop(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
}

const (
	// packet is about how many bytes are lost at once.
	packet = 1448
	// sentAgain is after what time Linux sends a packet again at the soonest.
	sentAgain = 200 * time.Millisecond
)

// late is how much later than at once a piece of so many bytes arrives.
func (l *Link) late(bytes int) time.Duration {
	d := time.Duration(l.delay.Load())
	loss, late := math.Float64frombits(l.loss.Load()), d
	for range (bytes + packet - 1) / packet {
		for again := sentAgain + 2*d; loss > 0 && rand.Float64() < loss; again *= 2 {
			late += again
		}
	}
	return late
}

// open waits until bytes go on in a direction, and reports false if the connection was broken before.
func (l *Link) open(ctx context.Context, d Direction) bool {
	for ctx.Err() == nil {
		l.mu.Lock()
		held := l.mute[d]
		l.mu.Unlock()
		if held == nil {
			return true
		}
		select {
		case <-held:
		case <-ctx.Done():
		}
	}
	return false
}

// pump copies, each piece as late as the link was when it came. ctx ends when the connection is broken.
func (l *Link) pump(ctx context.Context, to io.Writer, from io.Reader, d Direction) {
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
			if !l.open(ctx, d) {
				return
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
			select {
			case pieces <- piece{time.Now().Add(l.late(n)), l.rewritten(d, b[:n])}:
			case <-ctx.Done():
			}
		}
		if err != nil {
			close(pieces)
			writer.Wait()
			return
		}
	}
}
