package capture

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"time"

	"github.com/pgbridge/pgbridge/origin"
)

const (
	// The receiver reads into buffers of this size, so many of them, so that it can go on while the
	// walker works on one.
	bufferBytes = 256 << 10
	buffers     = 4
	// confirmInterval is how soon the server is told that more is safe. Nobody waits for it.
	confirmInterval = time.Second
	// The walsender makes one send for each row (walsender.c, WalSndWriteData). A reader that answers each
	// with a read costs both sides a wake-up a row; so, when burstReads reads in a row each brought less
	// than burstBytes and came within burstGap, rows may gather for burstPause. A socket
	// takes at least 270 of them meanwhile, which is more than are decoded in that time.
	burstReads = 8
	burstBytes = 16 << 10
	burstGap   = time.Millisecond
	burstPause = 300 * time.Microsecond
	// writeTimeout is how long a server may take no reply before its connection counts as lost.
	writeTimeout = time.Minute
)

// wireConn is the bare connection to a walsender. One goroutine reads, another one writes.
type wireConn struct {
	conn     io.ReadWriteCloser
	full     chan []byte   // what was read, in order; closed by receive when it ends. Holds all buffers.
	free     chan []byte   // buffers to read into. Holds all buffers, so that giving one back never waits.
	asked    chan struct{} // capacity 1: the server wants a reply now
	ledger   *ledger
	interval time.Duration // between two reports at the most
}

func newWireConn(conn io.ReadWriteCloser, l *ledger, interval time.Duration) *wireConn {
	w := &wireConn{conn: conn, ledger: l, interval: interval,
		full: make(chan []byte, buffers), free: make(chan []byte, buffers), asked: make(chan struct{}, 1)}
	for range buffers {
		w.free <- make([]byte, bufferBytes)
	}
	return w
}

// receive reads until the connection ends.
func (w *wireConn) receive(ctx context.Context) error {
	defer close(w.full)
	burst, last := 0, time.Now()
	for {
		var b []byte
		select {
		case b = <-w.free:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if burst >= burstReads {
			time.Sleep(burstPause)
		}
		n, err := w.conn.Read(b)
		now := time.Now()
		if burst++; n >= burstBytes || now.Sub(last) > burstGap {
			burst = 0
		}
		last = now
		if n > 0 {
			w.full <- b[:n]
		}
		if err != nil {
			return classify(err, "read replication stream")
		}
	}
}

// report tells the server how far all is safe: when it asks, when that has grown, and often enough for its
// wal_sender_timeout. It does not depend on the walker, which may wait for the broker.
func (w *wireConn) report(ctx context.Context) error {
	tick := time.NewTicker(min(w.interval, confirmInterval))
	defer tick.Stop()
	var told uint64
	var at time.Time
	for {
		asked := false
		select {
		case <-tick.C:
		case <-w.asked:
			asked = true
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		now := time.Now()
		lsn := w.ledger.tell(now)
		if !asked && lsn == told && now.Sub(at) < w.interval {
			continue
		}
		if c, ok := w.conn.(net.Conn); ok { // one in blocking mode has the time-out itself
			if err := c.SetWriteDeadline(now.Add(writeTimeout)); err != nil {
				return classify(err, "reply to the server")
			}
		}
		if _, err := w.conn.Write(appendStatus(nil, lsn, now)); err != nil {
			return classify(err, "reply to the server")
		}
		told, at = lsn, now
	}
}

func (w *wireConn) askReport() {
	select {
	case w.asked <- struct{}{}:
	default: // a report is due already
	}
}

// appendStatus appends a standby status update. Written, flushed and applied are all what is safe: a
// walsender that has caught up sends its WAL end at once only while "written" lies behind it (walsender.c,
// WalSndWaitForWal), and that is how Passed gets beyond a last marker.
func appendStatus(b []byte, lsn uint64, now time.Time) []byte {
	b = append(b, 'd', 0, 0, 0, 4+34, 'r')
	for range 3 {
		b = binary.BigEndian.AppendUint64(b, lsn)
	}
	b = binary.BigEndian.AppendUint64(b, uint64(origin.StampOf(now)))
	return append(b, 0)
}
