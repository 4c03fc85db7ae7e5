package capture

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/rowkey"
)

// catalog answers questions about the local database over a connection of its own. While nobody asks, it
// watches that connection: a server that stops ends it, and waits for its walsenders for ever.
type catalog struct {
	conn     *pgx.Conn
	requests chan request  // capacity 1, so that a request stands there before the watch is interrupted
	done     chan struct{} // closed by run when it ends
	watching atomic.Pointer[context.CancelFunc]
}

type request struct {
	ask  func(ctx context.Context, conn *pgx.Conn) error
	done chan error // capacity 1; nil if nobody waits
}

func newCatalog(conn *pgx.Conn) *catalog {
	return &catalog{conn: conn, requests: make(chan request, 1), done: make(chan struct{})}
}

// run owns the connection until it breaks or ctx ends.
func (c *catalog) run(ctx context.Context) error {
	defer close(c.done)
	for {
		watch, stop := context.WithCancel(ctx)
		c.watching.Store(&stop)
		select {
		case r := <-c.requests:
			stop()
			err := r.ask(ctx, c.conn)
			if r.done != nil {
				r.done <- err
			}
			if err != nil {
				return classify(err, "read the catalog")
			}
			continue
		default:
		}
		_, err := c.conn.WaitForNotification(watch)
		interrupted := watch.Err() != nil
		stop()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil && !interrupted {
			return classify(err, "watch the server")
		}
	}
}

// do has ask run on the connection, and waits for it.
func (c *catalog) do(ctx context.Context, ask func(context.Context, *pgx.Conn) error) error {
	r := request{ask: ask, done: make(chan error, 1)}
	select {
	case c.requests <- r:
	case <-c.done:
		return &lostError{fmt.Errorf("connection to the catalog is closed")}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	c.interrupt()
	select {
	case err := <-r.done:
		return err
	case <-c.done:
		return &lostError{fmt.Errorf("connection to the catalog is closed")}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// try has ask run on the connection unless it is busy, and does not wait.
func (c *catalog) try(ask func(context.Context, *pgx.Conn) error) {
	select {
	case c.requests <- request{ask: ask}:
		c.interrupt()
	default:
	}
}

// interrupt wakes the watch. The request stands in the channel already: run looks there after it has stored
// the watch that this does not see.
func (c *catalog) interrupt() {
	if stop := c.watching.Load(); stop != nil {
		(*stop)()
	}
}

// keySQL chooses a table's key among its unique indexes: the replica identity's own, the primary key, any
// other. Apply chooses by the same rule, since both must hash a key alike.
const keySQL = `
SELECT k.relid, a.attname::text, a.atttypid, a.attcollation
FROM (SELECT DISTINCT ON (i.indrelid) i.indrelid AS relid, (i.indkey[0:i.indnkeyatts-1])::int2[] AS columns
      FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
      WHERE i.indrelid = ANY ($1::oid[]) AND i.indisunique AND i.indisvalid AND i.indimmediate
        AND i.indpred IS NULL AND i.indexprs IS NULL
        AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = i.indrelid
                        AND a.attnum = ANY (i.indkey[0:i.indnkeyatts-1]) AND NOT a.attnotnull)
      ORDER BY i.indrelid, i.indisreplident AND c.relreplident = 'i' DESC, i.indisprimary DESC, i.indexrelid) k
JOIN pg_attribute a ON a.attrelid = k.relid AND a.attnum = ANY (k.columns)
ORDER BY k.relid, a.attname`

// readKeys returns the key columns of tables, sorted by name, by the tables' object ids.
func readKeys(ctx context.Context, conn *pgx.Conn, oids []uint32) (map[uint32][]keyColumn, error) {
	rows, err := conn.Query(ctx, keySQL, oids)
	if err != nil {
		return nil, classify(err, "read keys")
	}
	keys := map[uint32][]keyColumn{}
	var oid uint32
	var k keyColumn
	if _, err = pgx.ForEachRow(rows, []any{&oid, &k.name, &k.typ, &k.collation}, func() error {
		keys[oid] = append(keys[oid], k)
		return nil
	}); err != nil {
		return nil, classify(err, "read keys")
	}
	types := rowkey.NewTypes(conn)
	for _, key := range keys {
		for i := range key {
			k := &key[i]
			if k.hashed, err = types.Key(ctx, k.typ, k.collation); errors.As(err, &k.refused) {
				continue // Check refuses it; what is captured meanwhile is hashed by its bytes
			} else if err != nil {
				return nil, classify(err, "read the types of keys")
			}
		}
	}
	return keys, nil
}

// key returns one table's key columns, none if it has no key or is gone.
func (c *catalog) key(ctx context.Context, oid uint32) (key []keyColumn, err error) {
	err = c.do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		keys, err := readKeys(ctx, conn, []uint32{oid})
		key = keys[oid]
		return err
	})
	return key, err
}

// prune asks the server which of the recent ids have ended.
func (c *catalog) prune(r *recents) {
	c.try(func(ctx context.Context, conn *pgx.Conn) error {
		var s string
		if err := conn.QueryRow(ctx, `SELECT pg_current_snapshot()::text`).Scan(&s); err != nil {
			return classify(err, "read snapshot")
		}
		xmax, running, err := parseSnapshot(s)
		if err == nil {
			r.prune(xmax, running)
		}
		return err
	})
}

// parseSnapshot decodes "xmin:xmax:xip,xip": full transaction ids.
func parseSnapshot(s string) (xmax uint64, running []uint32, err error) {
	f := strings.Split(s, ":")
	if len(f) != 3 {
		return 0, nil, fmt.Errorf("snapshot %q", s)
	}
	if xmax, err = strconv.ParseUint(f[1], 10, 64); err != nil {
		return 0, nil, fmt.Errorf("snapshot %q: %w", s, err)
	}
	for _, x := range strings.FieldsFunc(f[2], func(r rune) bool { return r == ',' }) {
		id, err := strconv.ParseUint(x, 10, 64)
		if err != nil {
			return 0, nil, fmt.Errorf("snapshot %q: %w", s, err)
		}
		running = append(running, uint32(id))
	}
	return xmax, running, nil
}
