package capture

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/rowkey"
	"github.com/pgbridge/pgbridge/wire"
)

// hashes hashes keys of all tables, over whatever connection there is at the time.
type hashes struct {
	digests *rowkey.Digests
	// ask lends a connection to the local database: each session its own.
	ask rowkey.Ask
	log *slog.Logger
}

func newHashes(log *slog.Logger) *hashes {
	h := &hashes{log: log}
	h.digests = rowkey.NewDigests(func(ctx context.Context, f func(context.Context, *pgx.Conn) error) error { return h.ask(ctx, f) })
	return h
}

// hash returns the hash of a key of t. A key that the server refuses to hash is hashed by its bytes: its type
// was dropped or altered since, and with it every row that could have an equal key. Errors are classified.
func (t *Table) hash(ctx context.Context, key []wire.Value) (wire.KeyHash, error) {
	if !t.hasher.Served() {
		return t.hasher.Hash(key, nil), nil
	}
	k, err := t.hashes.digests.Hash(ctx, t.hasher, key)
	var pg *pgconn.PgError
	if errors.As(err, &pg) && !passing(pg.Code) {
		t.hashes.log.Warn("key hashed by its bytes", "relation", t.Schema+"."+t.Name, "err", pg.Message)
		return t.hasher.Hash(key, nil), nil
	}
	return k, classify(err, fmt.Sprintf("hash a key of %s.%s", t.Schema, t.Name))
}

// same reports whether two keys of t are equal.
func (t *Table) same(ctx context.Context, a, b []wire.Value) (bool, error) {
	if t.hasher.Served() {
		t.hashes.digests.Want(t.hasher, a)
		t.hashes.digests.Want(t.hasher, b)
		if err := t.hashes.digests.Learn(ctx); err != nil {
			return false, classify(err, "hash keys")
		}
	}
	x, err := t.hash(ctx, a)
	if err != nil {
		return false, err
	}
	y, err := t.hash(ctx, b)
	return x == y, err
}

// Bounds of the keys that wait to be hashed together.
const (
	unhashedLimit = 1 << 10
	unhashedBytes = 256 << 10
)

// unhashed are keys that the server is to hash: together, since each question is a round trip.
type unhashed struct {
	list []unhashedKey
	size int // bytes of keys
}

// unhashedKey is the key of a row that was deleted or, if wrote is set, written.
type unhashedKey struct {
	table *Table
	sub   uint32
	wrote bool
	key   []wire.Value
}

// add copies the key, and reports that there are enough.
func (u *unhashed) add(x unhashedKey) (full bool) {
	copied := make([]wire.Value, len(x.key))
	for i, v := range x.key {
		copied[i] = wire.Value{Format: v.Format, Data: append([]byte(nil), v.Data...)}
		u.size += len(v.Data)
	}
	x.key = copied
	u.list = append(u.list, x)
	return len(u.list) >= unhashedLimit || u.size >= unhashedBytes
}

func (u *unhashed) reset() {
	clear(u.list)
	u.list, u.size = u.list[:0], 0
}

// settle hashes what waits for it. It comes before anything that a transaction's end changes: the server may
// be away.
func (k *touched) settle(ctx context.Context) error {
	if len(k.unhashed.list) == 0 {
		return nil
	}
	digests := k.unhashed.list[0].table.hashes.digests
	for _, x := range k.unhashed.list {
		if !digests.Want(x.table.hasher, x.key) {
			continue
		}
		if err := digests.Learn(ctx); err != nil {
			return classify(err, "hash keys")
		}
	}
	if err := digests.Learn(ctx); err != nil {
		return classify(err, "hash keys")
	}
	for _, x := range k.unhashed.list {
		hash, err := x.table.hash(ctx, x.key)
		if err != nil {
			return err
		}
		if x.wrote {
			k.keys = append(k.keys, hash)
		} else if err := k.graves.add(grave{sub: x.sub, table: x.table, hash: hash, key: x.key}); err != nil {
			return err
		}
	}
	k.unhashed.reset()
	k.waiting = 0
	return nil
}
