package doctor

import (
	"fmt"

	"github.com/pgbridge/pgbridge/catalog"
)

// exhaustion looks for sequences that are about to have no values any more.
func exhaustion(f *Facts) []Finding {
	var all []Finding
	for _, x := range catalog.Exhausted(f.Tables) {
		all = append(all, Exhausting(x))
	}
	return all
}

// Exhausting tells of a sequence that comes to its end; status does, too.
func Exhausting(x catalog.Exhaustion) Finding {
	s := Warning
	if x.Urgent {
		s = Error
	}
	return Finding{"sequence-exhausts", s, fmt.Sprintf("sequence %s of column %s of table %s has given %.0f %% of its values; %d are left", x.Sequence.Name, x.Sequence.Column, x.Sequence.Table, 100*x.Used, x.Left),
		"when none is left, no row can be inserted with it", fmt.Sprintf(
			"if %s is integer, run ALTER TABLE %s ALTER COLUMN %q TYPE bigint on every node, which rewrites the table; then ALTER SEQUENCE %s AS bigint MAXVALUE 9223372036854775807",
			x.Sequence.Column, x.Sequence.Table, x.Sequence.Column, x.Sequence.Name)}
}

// inUse looks for sequences that are about to give values that rows have already.
func inUse(f *Facts) []Finding {
	var all []Finding
	for i := range f.Tables.Sequences {
		if q := &f.Tables.Sequences[i]; q.InUse != nil {
			all = append(all, Finding{"sequence-in-use", Error, fmt.Sprintf("sequence %s is about to give %d, which a row of table %s has already", q.Name, *q.InUse, q.Table),
				"an insert with it is refused as a duplicate, here, at once", "run pgbridge sequences apply on this node"})
		}
	}
	return all
}

// unseenSequences are those of which the role may not see how far they are.
func unseenSequences(f *Facts) []Finding {
	var names []string
	for i := range f.Tables.Sequences {
		if q := &f.Tables.Sequences[i]; q.Last == nil {
			names = append(names, q.Name)
		}
	}
	if names == nil {
		return nil
	}
	list := names[0]
	for _, n := range names[1:] {
		list += ", " + n
	}
	return one("sequence-privilege", Warning, fmt.Sprintf("role %s may not see how far sequences are: %s", f.Server.roleName(), few(names)),
		"whether two nodes give the same values, and when there are none left, cannot be told then",
		fmt.Sprintf("run GRANT SELECT ON SEQUENCE %s TO %s", list, f.Server.roleName()))
}

func (s *Server) roleName() string {
	if s == nil {
		return "pgbridge"
	}
	return s.Role.Name
}

// sequences looks for those that give values which another node's give, too.
func sequences(f *Facts) []Finding {
	var all []Finding
	if f.Tables == nil {
		return nil
	}
	for i := range f.Nodes {
		n := &f.Nodes[i]
		if n.Tables == nil {
			continue
		}
		for _, c := range catalog.Collisions(f.Tables, n.Tables) {
			all = append(all, Finding{"sequence-collides", Error, c.Text,
				"two nodes then insert rows with one key, of which only one remains in the table", "run pgbridge sequences apply on each node (docs/sequences.md)"})
		}
		for _, node := range catalog.SameNumbers(f.Tables, []*catalog.Summary{n.Tables}) {
			all = append(all, Finding{"id-number", Error, fmt.Sprintf("pgbridge.id_number() is %d here and on node %s", *f.Tables.IDNumber, node),
				"the two nodes' time-based identifiers may be the same", "run what pgbridge sequences plan --ids time prints, on one of the two nodes"})
		}
	}
	return all
}
