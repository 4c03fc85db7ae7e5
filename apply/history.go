package apply

import (
	"context"
	"fmt"
	"strings"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/wire"
)

const conflictSQL = `
INSERT INTO pgbridge.conflict (relation, kind, outcome, remote_origin, remote_seq, remote_stamp,
    local_origin, local_stamp, local_row, remote_row)
VALUES ($1, $2, $3, $4, $5::text::int8, $6::text::int8, $7, $8::text::int8, $9::text::jsonb, $10::text::jsonb)`

// record keeps both versions of a conflict, in the transaction that decides it (invariant 7). tuple is
// what the remote transaction wants, nil for a delete.
func (c *carefulRun) record(ctx context.Context, m *mapping, tuple []wire.Value, l look, d conflict.Decision) error {
	if !d.Conflict {
		return nil
	}
	remote, err := c.image(ctx, m, tuple)
	if err != nil {
		return err
	}
	outcome := "local wins"
	if d.RemoteWins {
		outcome = "remote wins"
	}
	text := func(s string) param { return param{value: []byte(s)} }
	number := func(n int64) param { return text(fmt.Sprint(n)) }
	json := func(b []byte) param { return param{value: b, null: b == nil} }
	_, err = c.exec(ctx, conflictSQL, nil, []param{
		text(m.local.schema + "." + m.local.name), text(string(d.Kind)), text(outcome),
		text(c.origin.String()), number(int64(c.t.Seq)), number(int64(c.t.Stamp)),
		text(l.local.Version.Origin.String()), number(int64(l.local.Version.Stamp)),
		json(l.image), json(remote),
	})
	if err != nil {
		return fmt.Errorf("record conflict: %w", err)
	}
	c.losses++
	return nil
}

// image gives a tuple as a JSON object, NULL values included, unchanged ones left out.
func (c *carefulRun) image(ctx context.Context, m *mapping, tuple []wire.Value) ([]byte, error) {
	var cols []string
	var types []uint32
	var ps []param
	for i, v := range tuple {
		if v.Format == wire.Unchanged || m.cols[i] < 0 {
			continue
		}
		p, err := m.param(i, v)
		if err != nil {
			return nil, err
		}
		col := &m.local.cols[m.cols[i]]
		ps, types = append(ps, p), append(types, col.param())
		cols = append(cols, fmt.Sprintf("$%d AS %s", len(ps), col.quoted))
	}
	if len(cols) == 0 {
		return nil, nil
	}
	rows, err := c.exec(ctx, "SELECT to_jsonb(r) FROM (SELECT "+strings.Join(cols, ", ")+") r", types, ps)
	if err != nil || len(rows) != 1 {
		return nil, fmt.Errorf("image of a row of %s: %w", m.local.quoted, err)
	}
	return rows[0][0], nil
}
