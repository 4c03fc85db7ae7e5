package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"golang.org/x/sync/errgroup"
)

// The decode floor: how long the server takes to hand the work out, to a reader that does nothing with it. Everybody
// who replicates by logical decoding takes at least that long.

const floorSlot = "bench_floor"

// floorOptions are those of pgbridge's capture on that version.
func floorOptions(major int) string {
	const options = "publication_names 'bench_floor', binary 'true', messages 'true', streaming 'on'"
	if major < 16 {
		return "proto_version '3', " + options
	}
	return "proto_version '4', " + options + ", origin 'none'"
}

// floor commits the work behind a slot, and measures how long reading it to nowhere takes. Where both ends write, both
// are read at once.
func (b *bench) floor(ctx context.Context, l line, p *pair, n int) (s sample, err error) {
	writers := p.writers(l)
	for _, w := range writers {
		err := w.exec(ctx, "CREATE PUBLICATION bench_floor FOR ALL TABLES WITH (publish_via_partition_root = true)")
		if err == nil {
			err = w.exec(ctx, "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", floorSlot)
		}
		if err != nil {
			return s, err
		}
	}
	if err := p.commit(ctx, l, n); err != nil {
		return s, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, b.opts.timeout, fmt.Errorf("not read after %s", b.opts.timeout))
	defer cancel()
	var readers []*slotReader
	defer func() {
		for _, r := range readers {
			r.conn.Close()
		}
	}()
	for _, w := range writers {
		r, err := openSlot(ctx, w)
		if err != nil {
			return s, err
		}
		readers = append(readers, r)
	}
	before, begun := p.ticks(nil), time.Now()
	var g errgroup.Group
	for _, r := range readers {
		g.Go(r.read)
		defer context.AfterFunc(ctx, func() { syscall.Shutdown(int(r.conn.Fd()), syscall.SHUT_RDWR) })()
	}
	if err := g.Wait(); err != nil {
		return s, errors.Join(err, context.Cause(ctx))
	}
	s.Seconds, s.CPU = round(time.Since(begun).Seconds()), p.ticks(nil).since(before)
	s.Counters = map[string]uint64{}
	for _, r := range readers {
		s.Counters["bytes"] += r.bytes
	}
	return s, nil
}

// slotReader reads a slot until the commit of the sentinel.
type slotReader struct {
	server   *server
	conn     *os.File // in blocking mode: Go's poller would cost both sides a wake-up for each row
	sentinel uint64   // the sentinel is the first transaction whose commit lies here or beyond
	bytes    uint64
}

// openSlot connects to a walsender; read then begins.
func openSlot(ctx context.Context, s *server) (*slotReader, error) {
	r := &slotReader{server: s, sentinel: s.sentinelLSN}
	cfg, err := pgconn.ParseConfig(s.dsn)
	if err != nil {
		return nil, err
	}
	cfg.RuntimeParams["replication"] = "database"
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	bare, err := conn.Hijack()
	if err != nil {
		conn.Close(ctx)
		return nil, err
	}
	defer bare.Conn.Close() // the file below is a copy of it
	socket, ok := bare.Conn.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("%s: the floor is read over a Unix socket, not %T", s.name, bare.Conn)
	}
	if r.conn, err = socket.File(); err != nil {
		return nil, err
	}
	r.conn.Fd() // sets blocking mode
	return r, nil
}

// The fixed parts of what a walsender sends: "Streaming Replication Protocol", "Message Formats".
const (
	messageHead = 5                // kind and length
	dataHead    = messageHead + 25 // 'w', start, end, time
	commitHead  = dataHead + 10    // 'C', flags, LSN of the commit
	aliveLen    = messageHead + 18 // 'k', end, time, reply requested
	// floorBuffer is how much is read at once at the most.
	floorBuffer = 1 << 20
	// floorReply is how often the walsender hears of us, well within wal_sender_timeout.
	floorReply = time.Second
)

// read takes everything until the sentinel's commit. It looks at no more than kind and length of a message.
func (r *slotReader) read() error {
	query := pgproto3.Query{String: fmt.Sprintf("START_REPLICATION SLOT %s LOGICAL 0/0 (%s)", floorSlot, floorOptions(r.server.major()))}
	start, err := query.Encode(nil)
	if err != nil {
		return err
	}
	if _, err := r.conn.Write(start); err != nil {
		return err
	}
	in := bufio.NewReaderSize(gathering{r.conn}, floorBuffer)
	replied := time.Now()
	for {
		head, err := in.Peek(messageHead)
		if err != nil {
			return fmt.Errorf("%s: read slot: %w", r.server.name, err)
		}
		kind, size := head[0], 1+int(binary.BigEndian.Uint32(head[1:]))
		m, err := in.Peek(min(size, commitHead))
		if err != nil {
			return fmt.Errorf("%s: read slot: %w", r.server.name, err)
		}
		switch {
		case kind == 'E':
			text, _ := in.Peek(min(size, in.Buffered()))
			return fmt.Errorf("%s: read slot: %q", r.server.name, text)
		case kind == 'd' && len(m) == commitHead && m[messageHead] == 'w' && m[dataHead] == 'C':
			if binary.BigEndian.Uint64(m[dataHead+2:]) >= r.sentinel {
				return nil
			}
		case kind == 'd' && size == aliveLen && m[messageHead] == 'k':
			if m[aliveLen-1] != 0 || time.Since(replied) > floorReply {
				replied = time.Now()
				if err := r.reply(binary.BigEndian.Uint64(m[messageHead+1:])); err != nil {
					return err
				}
			}
		}
		r.bytes += uint64(size)
		if _, err := in.Discard(size); err != nil {
			return fmt.Errorf("%s: read slot: %w", r.server.name, err)
		}
	}
}

// gathering lets rows gather after a short read. The walsender makes one send for each row (walsender.c,
// WalSndWriteData); a reader that answers each with a read costs it a wake-up a row, and the floor would lie above
// what rivals take.
type gathering struct{ from io.Reader }

const (
	floorShort = 16 << 10
	floorPause = 300 * time.Microsecond // a socket takes more than is decoded meanwhile
)

func (g gathering) Read(b []byte) (int, error) {
	n, err := g.from.Read(b)
	if n < floorShort {
		time.Sleep(floorPause) // nothing is awaited: this is the rate at which is read
	}
	return n, err
}

// reply tells the walsender that we live. Nothing is confirmed: the slot goes with its server.
func (r *slotReader) reply(lsn uint64) error {
	b := []byte{'d', 0, 0, 0, 4 + 34, pglogrepl.StandbyStatusUpdateByteID}
	b = binary.BigEndian.AppendUint64(b, lsn) // written
	b = append(b, make([]byte, 8+8+8+1)...)   // flushed, applied, time, no reply wanted
	_, err := r.conn.Write(b)
	return err
}
