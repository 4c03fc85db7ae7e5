package apply

import (
	"fmt"
	"strings"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/wire"
)

const conflictSQL = `
INSERT INTO pgbridge.conflict (relation, kind, outcome, remote_origin, remote_seq, remote_stamp,
    local_origin, local_stamp, local_row, remote_row)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, `

// record queues both versions of a conflict to be kept, in the transaction that decides it (invariant 7).
// tuple is what the remote transaction wants, nil for a delete.
func (c *carefulRun) record(m *mapping, tuple []wire.Value, l look, d conflict.Decision) error {
	if !d.Conflict {
		return nil
	}
	outcome := "local wins"
	if d.RemoteWins {
		outcome = "remote wins"
	}
	const oidText, oidJSONB = 25, 3802
	text := func(s string) param { return param{value: []byte(s)} }
	types := []uint32{oidText, oidText, oidText, oidText, oidInt8, oidInt8, oidText, oidInt8, oidJSONB}
	ps := []param{
		text(m.local.schema + "." + m.local.name), text(string(d.Kind)), text(outcome),
		text(c.origin.String()), int64Param(int64(c.t.Seq)), int64Param(int64(c.t.Stamp)),
		text(l.local.Version.Origin.String()), int64Param(int64(l.local.Version.Stamp)),
		{value: l.image, null: l.image == nil},
	}
	image, types, ps, err := m.image(tuple, types, ps)
	if err != nil {
		return err
	}
	c.push("record conflict", conflictSQL+image+")", types, ps)
	c.losses++
	return nil
}

// image is the SQL for a tuple as a JSON object, NULL values included, unchanged ones left out; the
// tuple's values are appended to the parameters.
func (m *mapping) image(tuple []wire.Value, types []uint32, ps []param) (string, []uint32, []param, error) {
	var cols []string
	for i, v := range tuple {
		if v.Format == wire.Unchanged || m.cols[i] < 0 {
			continue
		}
		p, err := m.param(i, v)
		if err != nil {
			return "", nil, nil, err
		}
		col := &m.local.cols[m.cols[i]]
		ps, types = append(ps, p), append(types, col.param())
		cols = append(cols, fmt.Sprintf("$%d AS %s", len(ps), col.quoted))
	}
	if len(cols) == 0 {
		return "NULL", types, ps, nil
	}
	return "(SELECT to_jsonb(r) FROM (SELECT " + strings.Join(cols, ", ") + ") r)", types, ps, nil
}
