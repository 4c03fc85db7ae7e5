package apply

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/origin"
)

// A node that has left, or was removed, is waited for no more: what it has not seen may be forgotten. All others have all that it wrote,
// so that nothing of it is still to come. Its position and its replication origin stay, since rows bear it; and nobody may
// begin to write under its name again: what the others would then take for seen they have not.

// GoneNode is a node that has left, or was removed.
type GoneNode struct {
	Node  string `json:"node"`
	Epoch uint32 `json:"epoch"`
	Seq   uint64 `json:"seq"` // its last transaction
}

// loadGoneNodes reads them back.
func (a *Applier) loadGoneNodes(ctx context.Context) (err error) {
	a.goneNode, err = ReadGone(ctx, a.catalog.conn)
	return err
}

// ReadGone returns the nodes that have left or were removed, as a database says, by name. ErrNotSetUp: it does not know.
func ReadGone(ctx context.Context, conn *pgx.Conn) (map[string]GoneNode, error) {
	rows, err := conn.Query(ctx, `SELECT node, epoch, seq FROM pgbridge.gone_node`)
	if err != nil {
		return nil, fmt.Errorf("read pgbridge.gone_node: %w", explain(err))
	}
	all := map[string]GoneNode{}
	var node string
	var epoch, seq int64
	_, err = pgx.ForEachRow(rows, []any{&node, &epoch, &seq}, func() error {
		all[node] = GoneNode{node, uint32(epoch), uint64(seq)}
		return nil
	})
	if hasCode(err, "42P01", "3F000") { // a version before this one has set it up
		return nil, ErrNotSetUp
	}
	return all, named("read pgbridge.gone_node", err)
}

// GoneNodes returns the nodes that have left or were removed, by name. A nil Applier knows of none.
func (a *Applier) GoneNodes() []GoneNode {
	all := []GoneNode{}
	if a == nil {
		return all
	}
	for _, name := range slices.Sorted(maps.Keys(a.goneNode)) {
		all = append(all, a.goneNode[name])
	}
	return all
}

// IsGone reports whether a node, this one too, has left or was removed when the Applier was opened. A nil Applier knows of none.
func (a *Applier) IsGone(node string) bool {
	if a == nil {
		return false
	}
	_, ok := a.goneNode[node]
	return ok
}

// waitedFor are those of the origins whose nodes are not gone.
func (a *Applier) waitedFor(all []origin.Origin) []origin.Origin {
	return slices.DeleteFunc(slices.Clone(all), func(o origin.Origin) bool { return a.IsGone(o.Node) })
}

// GoneFrom notes that a node is gone, whose last transaction is seq. It takes effect when an Applier is opened. This node must have all of
// it: else nothing is noted.
func (a *Applier) GoneFrom(ctx context.Context, node string, seq uint64) error {
	if _, err := a.markers.flush(ctx); err != nil {
		return err
	}
	a.catalog.mu.Lock()
	defer a.catalog.mu.Unlock()
	var noted int64
	err := pgx.BeginFunc(ctx, a.catalog.conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL synchronous_commit = local"); err != nil { // others go by it
			return err
		}
		tag, err := tx.Exec(ctx, noteGoneSQL, node, int64(seq), a.own.Node, int64(a.own.Epoch))
		noted = tag.RowsAffected()
		return err
	})
	if err != nil {
		return fmt.Errorf("note that node %s is gone: %w", node, explain(err))
	}
	if noted == 0 {
		return fmt.Errorf("transaction %d of node %s is not the last one that was applied here, or some of them are parked", seq, node)
	}
	return nil
}

// noteGoneSQL notes a node whose last transaction is the last that was applied, or this one.
const noteGoneSQL = `INSERT INTO pgbridge.gone_node (node, epoch, seq)
SELECT $1, p.epoch, $2 FROM (SELECT origin, epoch, seq FROM pgbridge.position UNION ALL SELECT $3, $4, $2) p
WHERE p.origin = $1 AND p.seq = $2 AND NOT EXISTS (SELECT FROM pgbridge.parked k WHERE k.origin = $1) LIMIT 1
ON CONFLICT (node) DO UPDATE SET seq = EXCLUDED.seq`

// ParkedCount is how many transactions are parked.
func (a *Applier) ParkedCount() (n uint64) {
	for _, s := range a.Status() {
		n += s.Parked
	}
	return n
}

// Major is the major version of the server.
func (a *Applier) Major() int { return a.version / 10000 }

// NoteGone notes the nodes that are gone where a node joins.
func (j *Joiner) NoteGone(ctx context.Context, gone []GoneNode) error {
	for _, n := range gone {
		if _, err := j.conn.Exec(ctx, `INSERT INTO pgbridge.gone_node (node, epoch, seq) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`,
			n.Node, int64(n.Epoch), int64(n.Seq)); err != nil {
			return named("note which nodes are gone", err)
		}
	}
	return nil
}
