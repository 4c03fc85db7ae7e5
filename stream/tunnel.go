package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// A tunnel passes the bytes of a connection on through a broker, on two subjects that nobody stores. A broker may lose messages, so
// each one says where in the stream of bytes it stands, and a tunnel that misses any ends: whoever uses it dials again. What may be
// on its way is bounded by what the other side has said that it has passed on.
//
//	message = 'd' offset:uint64 bytes   what stands from there on
//	        | 'a' offset:uint64         so much has been passed on; sent now and then also if nothing was
//	        | 'c'                       the connection is closed
const tunnelBytes, tunnelAck, tunnelClose = 'd', 'a', 'c'

const (
	// tunnelWindow bounds the bytes in each direction that are on their way. Hellos must not stand behind more than a thin link carries
	// in some seconds.
	tunnelWindow = 512 << 10
	// tunnelPiece is what one message holds at most: below MinMaxPayload.
	tunnelPiece = 32 << 10
	// tunnelBeat is the time from one sign of life to the next, and tunnelSilence how long there may be none: whoever was killed says
	// nothing.
	tunnelBeat    = 5 * time.Second
	tunnelSilence = 3 * tunnelBeat
)

// tunnel is one end. Its goroutines are run's, the one that reads from conn, and that of its subscription.
type tunnel struct {
	nc     *nats.Conn
	conn   net.Conn
	out    string
	sub    *nats.Subscription
	status chan nats.Status
	ended  chan struct{} // closed by close
	once   sync.Once

	mu     sync.Mutex    // guards what follows
	passed uint64        // bytes that came and were passed on
	told   uint64        // as the other side knows
	free   chan struct{} // closed and replaced when acked grows
	sent   uint64
	acked  uint64
	heard  time.Time
}

// newTunnel listens already, and does nothing else before run, which the caller must call.
func newTunnel(nc *nats.Conn, conn net.Conn, in, out string) (*tunnel, error) {
	t := &tunnel{nc: nc, conn: conn, out: out, ended: make(chan struct{}), free: make(chan struct{}), heard: time.Now()}
	// What was on its way is lost with the broker.
	t.status = nc.StatusChanged(nats.RECONNECTING, nats.CLOSED)
	var err error
	if t.sub, err = nc.Subscribe(in, t.take); err != nil {
		nc.RemoveStatusListener(t.status)
		return nil, fmt.Errorf("subscribe to %s: %w", in, err)
	}
	_ = t.sub.SetPendingLimits(-1, 2*tunnelWindow)
	return t, nil
}

// close ends the tunnel. It does not wait.
func (t *tunnel) close() { t.once.Do(func() { close(t.ended) }) }

// run passes bytes on until the tunnel is closed, from here or from the other side.
func (t *tunnel) run() {
	var reading sync.WaitGroup
	reading.Go(t.read)
	beat := time.NewTicker(tunnelBeat)
	defer beat.Stop()
	for open := true; open; {
		select {
		case <-t.ended:
			open = false
		case <-t.status:
			open = false
		case now := <-beat.C:
			t.mu.Lock()
			open = now.Sub(t.heard) < tunnelSilence
			t.mu.Unlock()
			t.ack(0)
		}
	}
	t.close()
	t.conn.Close()
	t.nc.RemoveStatusListener(t.status)
	_ = t.sub.Unsubscribe()
	reading.Wait()
	_ = t.nc.Publish(t.out, []byte{tunnelClose}) // who does not hear it notices the silence
}

// read sends what the connection gives, as far as there is room on the way.
func (t *tunnel) read() {
	defer t.close()
	buf := make([]byte, 9+tunnelPiece)
	for {
		n, err := t.conn.Read(buf[9:])
		if n > 0 && !t.send(buf[:9+n]) || err != nil {
			return
		}
	}
}

// send sends a message of which all but the head is there. It waits for room, and reports false if the tunnel has ended.
func (t *tunnel) send(m []byte) bool {
	size := uint64(len(m) - 9)
	t.mu.Lock()
	for t.sent-t.acked+size > tunnelWindow {
		free := t.free
		t.mu.Unlock()
		select {
		case <-free:
		case <-t.ended:
			return false
		}
		t.mu.Lock()
	}
	m[0] = tunnelBytes
	binary.BigEndian.PutUint64(m[1:], t.sent)
	t.sent += size
	t.mu.Unlock()
	return t.nc.Publish(t.out, m) == nil
}

// ack says what has been passed on if that is at least so much more than the other side knows.
func (t *tunnel) ack(least uint64) {
	t.mu.Lock()
	passed := t.passed
	due := passed-t.told >= least
	if due {
		t.told = passed
	}
	t.mu.Unlock()
	if due && t.nc.Publish(t.out, binary.BigEndian.AppendUint64([]byte{tunnelAck}, passed)) != nil {
		t.close()
	}
}

// take takes a message of the other side.
func (t *tunnel) take(m *nats.Msg) {
	if err := t.message(m.Data); err != nil {
		t.close()
	}
}

var (
	errTunnelClosed = errors.New("the other side has closed the tunnel")
	errTunnelTorn   = errors.New("messages are missing, or are none of a tunnel")
)

func (t *tunnel) message(m []byte) error {
	if len(m) == 1 && m[0] == tunnelClose {
		return errTunnelClosed
	}
	if len(m) < 9 {
		return errTunnelTorn
	}
	at := binary.BigEndian.Uint64(m[1:])
	t.mu.Lock()
	t.heard = time.Now()
	passed := t.passed
	if m[0] == tunnelAck {
		defer t.mu.Unlock()
		if at > t.sent {
			return errTunnelTorn
		}
		t.acked = max(t.acked, at) // two may overtake each other
		close(t.free)
		t.free = make(chan struct{})
		return nil
	}
	t.mu.Unlock()
	if m[0] != tunnelBytes || at != passed {
		return errTunnelTorn
	}
	if _, err := t.conn.Write(m[9:]); err != nil {
		return err
	}
	t.mu.Lock()
	t.passed += uint64(len(m) - 9)
	t.mu.Unlock()
	t.ack(tunnelWindow / 4)
	return nil
}
