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
	var set []int
	for i, v := range tuple {
		if v.Format == wire.Unchanged || m.cols[i] < 0 {
			continue
		}
		p, err := m.param(i, v)
		if err != nil {
			return err
		}
		set, ps = append(set, i), append(ps, p)
	}
	s := m.statement("kc"+shape(set), func() (string, []uint32) {
		image, types := m.image(set, types)
		return conflictSQL + image + ")", types
	})
	c.push("record conflict", s, ps)
	c.losses++
	return nil
}

// image is the SQL for the columns of set as a JSON object, NULL values included; their parameters come
// behind those of types.
func (m *mapping) image(set []int, types []uint32) (string, []uint32) {
	if len(set) == 0 {
		return "NULL", types
	}
	var cols []string
	for _, i := range set {
		col := &m.local.cols[m.cols[i]]
		types = append(types, col.param())
		cols = append(cols, fmt.Sprintf("$%d AS %s", len(types), col.quoted))
	}
	return "(SELECT to_jsonb(r) FROM (SELECT " + strings.Join(cols, ", ") + ") r)", types
}
