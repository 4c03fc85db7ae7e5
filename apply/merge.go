package apply

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/wire"
)

// MergePolicy says how concurrent writes of the rows of some tables become one row, where that is not simply the
// later row.
type MergePolicy struct {
	// Pattern is how an operator wrote which tables it is for; Match tells.
	Pattern string
	Match   func(schema, table string) bool
	// Rows is the rule of all columns that have none of their own, as one unit, with the function if the rule is that.
	Rows     conflict.Rule
	Function string
	Deletes  conflict.Deletes
	Columns  []MergeColumns
	Home     MergeHome // if Rows is conflict.Home
}

// MergeHome says at which node rows should be written.
type MergeHome struct {
	Setting string                               // as an operator wrote it
	Column  func(schema, table string) string    // that names a row's home; "": its rows have none
	At      func(node string, value []byte) bool // whether a value means that node
}

// MergeColumns is the rule of a column, or of several that are merged as one unit. The name "*" stands for every column
// that is not named, each by itself.
type MergeColumns struct {
	Names    []string
	Rule     conflict.Rule
	Function string // schema.name, if Rule is conflict.Function (mergecall.go)
}

// fingerprint tells policies apart: the journal belongs to those under which it was written.
func fingerprint(policies []MergePolicy, priority []string, columns string) string {
	h := sha256.New()
	for _, p := range policies {
		fmt.Fprintf(h, "%q %d %q %d %v %q\n", p.Pattern, p.Rows, p.Function, p.Deletes, p.Columns, p.Home.Setting)
	}
	fmt.Fprintf(h, "%q", priority)
	if columns != "" { // journals are older than that setting
		fmt.Fprintf(h, "\n%q", columns)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// merge is how a table's rows are merged.
type merge struct {
	rules conflict.Rules
	cols  []int    // the local columns that rows consist of, as the rules count them
	units []string // what the journal calls the rules' units
	calls []string // by unit, the function that it calls; "" for none
	check string   // condition over a row's columns that its CHECK constraints demand; "" for none
	// Of columns of which only some nodes have the values (columns.go), as the rules count them:
	placed []placedUnit
	absent []int // columns that are NULL here, whatever users have written
}

// newMerge fits the policy to a table; nil if no policy is for it. A Blocked error says what does not fit.
func newMerge(t *table, policies []MergePolicy, priority []string) (*merge, error) {
	at := slices.IndexFunc(policies, func(p MergePolicy) bool { return p.Match(t.schema, t.name) })
	if at < 0 {
		return nil, nil
	}
	p := &policies[at]
	if !t.full {
		return nil, t.needsFull()
	}
	m := &merge{rules: conflict.Rules{Deletes: p.Deletes, Priority: priority}}
	place := map[string]int{}
	for i := range t.cols {
		if !t.cols[i].generated {
			place[t.cols[i].name] = len(m.cols)
			m.cols = append(m.cols, i)
		}
	}
	m.rules.Width = len(m.cols)
	taken := make([]bool, len(m.cols))
	each := false
	for _, c := range p.Columns {
		if len(c.Names) == 1 && c.Names[0] == "*" {
			each = true
			continue
		}
		u := conflict.Unit{Rule: c.Rule}
		for _, name := range c.Names {
			i, ok := place[name]
			if !ok {
				return nil, blocked("table %s has no column %q, which conflict.tables names for %s; correct the name", t.quoted, name, p.Pattern)
			}
			if taken[i] || t.isKey(m.cols[i]) {
				return nil, blocked("column %q of table %s cannot be merged by a rule of its own: it is named twice in conflict.tables, or belongs to the key; "+
					"take it out there", name, t.quoted)
			}
			taken[i] = true
			u.Columns = append(u.Columns, i)
		}
		if len(u.Columns) == 1 {
			u.Type = mergeType(t.cols[m.cols[u.Columns[0]]].typ.root())
		}
		if err := u.Rule.Supports(u.Type); err != nil {
			return nil, blocked("column %q of table %s cannot be merged by %s: %v; choose another rule in conflict.tables", c.Names[0], t.quoted, c.Rule, err)
		}
		m.add(u, strings.Join(c.Names, ","), c.Function)
	}
	rest := conflict.Unit{Rule: p.Rows}
	for i := range m.cols {
		switch {
		case taken[i]:
		case each && !t.isKey(m.cols[i]):
			m.add(conflict.Unit{Columns: []int{i}, Rule: p.Rows}, t.cols[m.cols[i]].name, p.Function)
		default:
			rest.Columns = append(rest.Columns, i)
		}
	}
	if len(rest.Columns) == len(t.key) {
		rest.Rule = conflict.Latest // only the key
	}
	m.add(rest, "", p.Function)
	if rest.Rule == conflict.Home {
		if err := m.home(t, p, place); err != nil {
			return nil, err
		}
	}
	if err := m.rules.Validate(); err != nil {
		return nil, blocked("table %s cannot be merged as conflict.tables says for %s: %v; correct that", t.quoted, p.Pattern, err)
	}
	if t.hasher.Served() {
		return nil, blocked("table %s cannot be merged: its key is of a type whose equality only the server knows; take it out of conflict.tables", t.quoted)
	}
	return m, nil
}

// home finds the column that names the home of the table's rows.
func (m *merge) home(t *table, p *MergePolicy, place map[string]int) error {
	name := p.Home.Column(t.schema, t.name)
	at, ok := place[name]
	switch {
	case name == "":
		return blocked("table %s has home_wins in conflict.tables, and conflict.home names no column for it; add %s.%s=column", t.quoted, t.schema, t.name)
	case !ok:
		return blocked("table %s has no column %q, which conflict.home names; correct the name", t.quoted, name)
	}
	if root := t.cols[m.cols[at]].typ.root(); mergeType(root) != conflict.TextType && root.kind != 'e' {
		return blocked("column %q of table %s names no node: conflict.home wants a text, varchar or enum column, and it is %s", name, t.quoted, root.name)
	}
	m.rules.HomeColumn = at
	m.rules.Home = func(node string, value conflict.Cell) bool { return !value.Null && p.Home.At(node, value.Data) }
	return nil
}

func (m *merge) add(u conflict.Unit, name, function string) {
	if u.Rule != conflict.Function {
		function = ""
	}
	m.rules.Units, m.units, m.calls = append(m.rules.Units, u), append(m.units, name), append(m.calls, function)
}

func (t *table) isKey(col int) bool { return slices.Contains(t.key, col) }

// mergeType is what the rules call a type.
func mergeType(t *pgType) conflict.Type {
	switch t.oid {
	case 16:
		return conflict.Bool
	case 20:
		return conflict.Int8
	case 21:
		return conflict.Int2
	case 23:
		return conflict.Int4
	case 25, 1043:
		return conflict.TextType
	case 114:
		return conflict.JSON
	case 700:
		return conflict.Float4
	case 701:
		return conflict.Float8
	case 1082:
		return conflict.Date
	case 1083, 1114, 1184:
		return conflict.Timestamp
	case 1700:
		return conflict.Numeric
	case 2950:
		return conflict.UUID
	case 3802:
		return conflict.JSONB
	}
	if t.elem != nil {
		return conflict.Array
	}
	return conflict.Opaque
}

// cells are the values of a tuple of the origin's, as the rules count the columns. A column that the origin does not have
// is NULL in all its rows.
func (m *mapping) cells(tuple []wire.Value) ([]conflict.Cell, error) {
	row := make([]conflict.Cell, len(m.local.merge.cols))
	for at, li := range m.local.merge.cols {
		i := slices.Index(m.cols, li)
		if i < 0 || i >= len(tuple) {
			row[at].Null = true
			continue
		}
		if tuple[i].Format == wire.Unchanged {
			return nil, m.local.needsFull()
		}
		p, err := m.param(i, tuple[i])
		if err != nil {
			return nil, err
		}
		row[at] = conflict.Cell{Null: p.null, Data: p.value}
	}
	return row, nil
}

// needsFull is the error for a change that does not come with the whole row as it was before.
func (t *table) needsFull() error {
	return blocked("table %s is merged (conflict.tables), which takes the old values of its rows; run ALTER TABLE %s REPLICA IDENTITY FULL "+
		"on every node, and on each partition", t.quoted, t.quoted)
}

// cellParam turns a cell of local column li into a statement's parameter.
func (t *table) cellParam(li int, c conflict.Cell) param {
	col := &t.cols[li]
	switch {
	case c.Null:
		return param{null: true}
	case col.typ.text || len(c.Data) == 0 && oneWayTypes[col.param()] != "":
		return param{value: c.Data}
	}
	return binaryParam(c.Data)
}

// selectCells lists the columns of alias t that make up a row's cells, and the format codes in which they come.
func (t *table) selectCells() (cols string, formats []int16) {
	var names []string
	for _, li := range t.merge.cols {
		names, formats = append(names, "t."+t.cols[li].quoted), append(formats, t.cols[li].typ.format())
	}
	return strings.Join(names, ", "), formats
}

// cellsOf are the cells of a row that came as selectCells asks for it.
func (t *table) cellsOf(row [][]byte) []conflict.Cell {
	cells := make([]conflict.Cell, len(row))
	for i, v := range row {
		if v == nil || slices.Contains(t.merge.absent, i) {
			cells[i].Null = true
			continue
		}
		cells[i].Data = v
		if empty := oneWayTypes[t.cols[t.merge.cols[i]].param()]; empty != "" && string(v) == empty {
			cells[i].Data = []byte{}
		}
	}
	return cells
}

// cellsAt reads the row that where finds, nil if there is none.
func cellsAt(ctx context.Context, conn *pgconn.PgConn, t *table, where string, types []uint32, ps []param) ([]conflict.Cell, error) {
	cols, formats := t.selectCells()
	values, in := raw(ps)
	r := conn.ExecParams(ctx, "SELECT "+cols+" FROM "+t.rows+" t WHERE "+where, values, types, in, formats).Read()
	if r.Err != nil || len(r.Rows) == 0 {
		return nil, r.Err
	}
	return t.cellsOf(r.Rows[0]), nil
}

// sameCells reports whether two rows, or the lack of one, look the same.
func sameCells(a, b []conflict.Cell) bool {
	return (a == nil) == (b == nil) && slices.EqualFunc(a, b, conflict.Cell.Equal)
}

// merges reports whether rows of a table are merged.
func (o *Options) merges(schema, table string) bool {
	return slices.ContainsFunc(o.Merge, func(p MergePolicy) bool { return p.Match(schema, table) })
}

// mayMerge reports whether t may have changed rows of a merged table.
func (o *Options) mayMerge(t *txn) bool {
	if len(o.Merge) == 0 {
		return false
	}
	for _, r := range t.described { // of its frame
		if o.merges(r.Schema, r.Name) {
			return true
		}
	}
	return t.run != nil
}

// merges reports whether one of the changes is of a merged table.
func merges(pending []step) bool {
	return slices.ContainsFunc(pending, func(s step) bool { return s.m.local.merge != nil })
}

// checkMerges refuses policies that do not fit the published tables: that is found out at a start, not when the first
// conflict comes.
func (a *Applier) checkMerges(ctx context.Context) error {
	var names []tableName
	var n tableName
	if err := a.catalog.ask(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = $1 ORDER BY 1, 2`,
			ownOriginName(a.opts.Cluster, a.opts.Node)) // which is the publication's name, too
		if err != nil {
			return err
		}
		_, err = pgx.ForEachRow(rows, []any{&n.schema, &n.name}, func() error {
			if a.opts.merges(n.schema, n.name) {
				names = append(names, n)
			}
			return nil
		})
		return err
	}); err != nil {
		return fmt.Errorf("read published tables: %w", explain(err))
	}
	var wrong []string
	for _, n := range names {
		if _, err := a.catalog.table(ctx, n.schema, n.name); isBlocked(err) {
			wrong = append(wrong, err.Error())
		} else if err != nil {
			return err
		}
	}
	if wrong != nil {
		return misfitError(strings.Join(wrong, "; "))
	}
	return nil
}

// misfitError says which policies do not fit their tables.
type misfitError string

// Error gives the faults and the mends.
func (e misfitError) Error() string { return string(e) }

// ExitCode is the command's exit code for this error: a check has found something.
func (misfitError) ExitCode() int { return 3 }
