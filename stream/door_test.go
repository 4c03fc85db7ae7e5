package stream

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgbridge/pgbridge/integration/natstest"
)

// echo is what stands behind a door in tests: connections whose other ends the test gets.
type echo struct{ conns chan net.Conn }

func (e *echo) dial() (net.Conn, error) {
	near, far := net.Pipe()
	e.conns <- far
	return near, nil
}

// openDoor opens a door at a broker, and returns a visitor there and the proxy that is between the door and the broker.
func openDoor(t *testing.T) (*Visitor, *echo, *natstest.Proxy) {
	t.Helper()
	s := natstest.New(t)
	p := natstest.NewProxy(t, s.Addr())
	e := &echo{make(chan net.Conn, doorLimit+1)}
	nc := natstest.Connect(t, p.URL())
	shut, err := OpenDoor(nc, "x", "e", "h", e.dial, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(shut)
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return &Visitor{Conn: s.Connect(t), Cluster: "x", Node: "e", Own: "h"}, e, p
}

// bytesFor returns bytes of which each piece can be told from the others.
func bytesFor(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>16) ^ byte(i>>8)*31 ^ byte(i)
	}
	return b
}

// requireEnd requires that a connection ends, without another byte, sooner than by silence.
func requireEnd(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(tunnelSilence / 2)); err != nil {
		return // closed here
	}
	if n, err := c.Read(make([]byte, 10)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes came, %v", n, err)
	}
}

// TestTunnelPassesBytesOn: both ways at once, in order and whole, more than may be on its way.
func TestTunnelPassesBytesOn(t *testing.T) {
	v, e, _ := openDoor(t)
	near, err := v.Dial("", "")
	if err != nil {
		t.Fatal(err)
	}
	far := <-e.conns
	sent := bytesFor(5 * tunnelWindow)
	failed := make(chan error, 4)
	for _, c := range []net.Conn{near, far} {
		go func() {
			_, err := c.Write(sent)
			failed <- err
		}()
		go func() {
			got := make([]byte, len(sent))
			_, err := io.ReadFull(c, got)
			if err == nil && !slices.Equal(got, sent) {
				err = errors.New("other bytes came than were sent")
			}
			failed <- err
		}()
	}
	for range 4 {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
}

// TestTunnelIsBounded: who does not take what comes is not sent more than the window.
func TestTunnelIsBounded(t *testing.T) {
	v, e, _ := openDoor(t)
	near, err := v.Dial("", "")
	if err != nil {
		t.Fatal(err)
	}
	far := <-e.conns
	wrote := make(chan int, 1)
	go func() {
		n, _ := near.Write(make([]byte, 4*tunnelWindow))
		wrote <- n
	}()
	if err := near.SetWriteDeadline(time.Now().Add(time.Second)); err != nil { // the time in which it must not go on
		t.Fatal(err)
	}
	if n := <-wrote; n > tunnelWindow+tunnelPiece || n < tunnelWindow-tunnelPiece {
		t.Errorf("%d bytes were taken, want about %d", n, tunnelWindow)
	}
	far.Close()
}

// TestTunnelEnds: at whichever end it is closed, the other one hears of it; and both when the broker is lost in between, or when the
// door is opened anew, as after somebody was killed.
func TestTunnelEnds(t *testing.T) {
	for name, end := range map[string]func(near, far net.Conn, v *Visitor, p *natstest.Proxy){
		"near":   func(near, _ net.Conn, _ *Visitor, _ *natstest.Proxy) { near.Close() },
		"far":    func(_, far net.Conn, _ *Visitor, _ *natstest.Proxy) { far.Close() },
		"broker": func(near, _ net.Conn, _ *Visitor, p *natstest.Proxy) { p.Cut() },
		"killed": func(_, far net.Conn, v *Visitor, p *natstest.Proxy) {
			p.Hold(true) // nothing of the first life gets through any more
			far.Close()
			nc := natstest.Connect(t, v.Conn.ConnectedUrl())
			if _, err := OpenDoor(nc, "x", "e", "h", nil, slog.New(slog.DiscardHandler)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			v, e, p := openDoor(t)
			near, err := v.Dial("", "")
			if err != nil {
				t.Fatal(err)
			}
			far := <-e.conns
			end(near, far, v, p)
			requireEnd(t, far)
			requireEnd(t, near)
		})
	}
}

// TestTunnelNoticesWhatIsLost: a message that does not come, or comes from somebody else, ends it; no byte is passed on behind a
// hole.
func TestTunnelNoticesWhatIsLost(t *testing.T) {
	for name, m := range map[string][]byte{
		"a hole":     append([]byte{tunnelBytes, 0, 0, 0, 0, 0, 0, 0, 9}, "late"...),
		"too short":  {tunnelBytes, 0},
		"unknown":    append([]byte{'?'}, make([]byte, 8)...),
		"bold ack":   {tunnelAck, 0, 0, 0, 0, 0, 0, 0, 9},
		"no message": {},
	} {
		t.Run(name, func(t *testing.T) {
			near, far := net.Pipe()
			s := natstest.New(t)
			nc := s.Connect(t)
			tun, err := newTunnel(nc, far, "in", "out")
			if err != nil {
				t.Fatal(err)
			}
			if err := nc.Publish("in", m); err != nil {
				t.Fatal(err)
			}
			go tun.run()
			requireEnd(t, near)
		})
	}
}

// TestDoor: who asks where nobody has opened a door hears so, one that asks for too much is refused, and a door that is shut ends
// its tunnels.
func TestDoor(t *testing.T) {
	s := natstest.New(t)
	v := &Visitor{Conn: s.Connect(t), Cluster: "x", Node: "e", Own: "h"}
	if _, err := v.Dial("", ""); !errors.Is(err, ErrNotHere) || !strings.Contains(err.Error(), "node e") {
		t.Errorf("without a door: %v", err)
	}
	e := &echo{make(chan net.Conn, doorLimit+1)}
	nc := s.Connect(t)
	shut, err := OpenDoor(nc, "x", "e", "h", e.dial, slog.New(slog.DiscardHandler))
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	// Another neighbour may have the same broker: who asks at one door gets one tunnel.
	both, err := OpenDoor(nc, "x", "e", "i", e.dial, slog.New(slog.DiscardHandler))
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(both)
	var conns []net.Conn
	for range doorLimit {
		c, err := v.Dial("", "")
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	if _, err := v.Dial("", ""); err == nil || !strings.Contains(err.Error(), "256 tunnels") {
		t.Errorf("one too many: %v", err)
	}
	if n := len(e.conns); n != doorLimit {
		t.Errorf("%d connections for %d tunnels", n, doorLimit)
	}
	if m, err := v.Conn.Request(DoorSubject("x", "e", "h"), []byte("a.b"), time.Minute); err != nil || string(m.Data) == tunnelOpen {
		t.Errorf("a name with a dot: %v", err)
	}
	shut()
	for _, c := range conns {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Fatal("a tunnel goes on though its door is shut")
		}
	}
}

// TestServerBehindADoor: a client reaches an embedded server that listens nowhere, and again when the way to it was cut.
func TestServerBehindADoor(t *testing.T) {
	inside, err := StartServer(ServerOptions{StoreDir: t.TempDir(), Token: "secret", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(inside.Close)
	if inside.ClientURL() != "" || inside.current.Load().Addr() != nil {
		t.Errorf("it listens at %q", inside.ClientURL())
	}
	s := natstest.New(t)
	p := natstest.NewProxy(t, s.Addr())
	out := natstest.Connect(t, p.URL())
	shut, err := OpenDoor(out, "x", "e", "h", inside.InProcessConn, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(shut)
	nc, err := Connect(ConnectOptions{Through: &Visitor{Conn: s.Connect(t), Cluster: "x", Node: "e", Own: "h"}, Token: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	own, err := inside.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(own.Close)
	for range 2 {
		if _, err := CheckBroker(t.Context(), nc, ""); err != nil {
			t.Fatal(err)
		}
		sub, err := own.SubscribeSync("large")
		if err == nil {
			err = own.Flush()
		}
		if err == nil {
			err = nc.Publish("large", bytesFor(1<<20))
		}
		if err == nil {
			err = nc.Flush()
		}
		if err != nil {
			t.Fatal(err)
		}
		if m, err := sub.NextMsg(10 * time.Second); err != nil || !slices.Equal(m.Data, bytesFor(1<<20)) {
			t.Fatalf("what came is not what was sent: %v", err)
		}
		lost := nc.StatusChanged(nats.RECONNECTING)
		p.Cut()
		<-lost
	}
}
