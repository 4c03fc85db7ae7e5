package bridge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/origin"
)

// Nodes are compared by the bridge that is asked to, the lead: it walks each table in segments (verifyscan.go), asks itself and the
// others for digests, and looks at the rows in which they differ until it knows whether they do (verifysettle.go). What it finds it
// may mend (verifyrepair.go).

// VerifyOptions say what is compared, and what becomes of what is found.
type VerifyOptions struct {
	Table  string   // a pattern over schema.table; empty: all
	Nodes  []string // with which this one is compared; empty: all others
	Repair bool
	From   string // the node that is right; empty: the later version is
	Rate   int    // rows of each node in a second; 0: no bound
	Limit  int    // how many rows are shown; 0: none
}

// VerifyRate is the bound on the rows of each node in a second where a person has nodes compared and names none.
const VerifyRate = 50_000

// VerifyReport is what a comparison has found. Its JSON is that of "pgbridge verify --json".
type VerifyReport struct {
	At          time.Time       `json:"at"` // when it began
	Seconds     float64         `json:"seconds"`
	Nodes       []string        `json:"nodes"` // the lead first
	Tables      []VerifiedTable `json:"tables"`
	Rows        int64           `json:"rows"`        // compared, of the lead
	Differences int             `json:"differences"` // rows
	Found       []RowDifference `json:"found"`       // the first of them
	Mended      int             `json:"mended"`
	Explained   []RowReason     `json:"explained"` // rows that differ for a reason which the nodes know of
	// Unsettled are rows that changed each time they were looked at.
	Unsettled []RowReason `json:"unsettled"`
	// Skipped are tables and columns that were not compared.
	Skipped []VerifySkipped `json:"skipped"`
	// Partial says that it was ended at so many differences as are remembered: there may be more.
	Partial bool `json:"partial,omitempty"`
}

// VerifiedTable is a table that was compared.
type VerifiedTable struct {
	Table       string  `json:"table"`
	Rows        int64   `json:"rows"`
	Segments    int     `json:"segments"`
	Looked      int     `json:"looked"` // rows that were looked at one by one
	Differences int     `json:"differences"`
	Mended      int     `json:"mended"`
	Seconds     float64 `json:"seconds"`
}

// VerifySkipped is something that was not compared.
type VerifySkipped struct {
	Table  string `json:"table"`
	Reason string `json:"reason"`
}

// RowReason is a row with something to be said about it.
type RowReason struct {
	Table  string `json:"table"`
	Key    string `json:"key"`
	Reason string `json:"reason"`
}

// RowDifference is a row that is not the same on all nodes.
type RowDifference struct {
	Table   string      `json:"table"`
	Key     string      `json:"key"`
	Columns []string    `json:"columns"` // in which the nodes differ that have the row
	Nodes   []RowOfNode `json:"nodes"`
	Right   string      `json:"right,omitempty"` // the node whose row is right; empty: that is not known
	Mended  bool        `json:"mended"`
	Refused string      `json:"refused,omitempty"` // why it was not mended
	key     [][]byte    // as the nodes are asked
	table   *tableAsked // of the row
	looks   map[string]*apply.VerifyLooked
}

// RowOfNode is the row as a node has it.
type RowOfNode struct {
	Node    string             `json:"node"`
	Found   bool               `json:"found"`
	Version string             `json:"version"`
	Values  map[string]*string `json:"values,omitempty"` // of the key and of the columns that differ, or of all if a node lacks the row
}

// VerifyProgress is how far a comparison has come.
type VerifyProgress struct {
	Table string `json:"table"`
	Rows  int64  `json:"rows"` // compared, of that table
	Doing string `json:"doing"`
}

// rowAsker asks a node a question.
type rowAsker func(ctx context.Context, node string, q *apply.VerifyQuestion) (*apply.VerifyAnswer, error)

// verifyRun is one comparison.
type verifyRun struct {
	ask    rowAsker
	nodes  []string // the lead first
	o      VerifyOptions
	tell   func(VerifyProgress)
	report *VerifyReport
	pace   pace
	after  origin.Vector // what all that was looked at may have come from
	found  []*RowDifference
	only   map[string]bool          // tables, as VerifyTable.String has them; nil: all
	rows   *apply.VerifyRows        // of them; nil: all
	cells  func(column string) bool // of columns beside the key; nil: all
	told   map[string]bool          // rows that differ and that another comparison has told of, by rowName; nil: there is none
}

// verifyRemembered is how many differences a comparison remembers at most: it ends there.
const verifyRemembered = 10_000

// tableAsked is a table of the comparison.
type tableAsked struct {
	*apply.VerifyTable
	at VerifiedTable
}

func newVerifyRun(ask rowAsker, nodes []string, o VerifyOptions, tell func(VerifyProgress)) *verifyRun {
	return &verifyRun{ask: ask, nodes: nodes, o: o, tell: tell, pace: pace{rate: o.Rate, from: time.Now()},
		report: &VerifyReport{At: time.Now(), Nodes: nodes, Tables: []VerifiedTable{}, Found: []RowDifference{}, Explained: []RowReason{}, Unsettled: []RowReason{}, Skipped: []VerifySkipped{}}}
}

// errVerifyFull ends a comparison that has found as much as it can remember.
var errVerifyFull = errors.New("there are more differences than are remembered")

// run compares all that is asked for.
func (c *verifyRun) run(ctx context.Context) (*VerifyReport, error) {
	tables, err := c.tables(ctx)
	if err != nil {
		return nil, err
	}
	walked, err := c.walk(ctx, tables)
	if err == nil {
		err = c.see(ctx)
	}
	if err != nil {
		return nil, err
	}
	for _, t := range walked {
		c.report.Tables = append(c.report.Tables, t.at)
		c.report.Rows += t.at.Rows
	}
	c.show()
	c.report.Seconds = time.Since(c.report.At).Seconds()
	return c.report, nil
}

// walk compares tables, and returns those that it has come to. What seems to differ is looked at when there is enough of it, and at
// the end, of all tables together: each look may wait for a node that is behind, and that is waited for once.
func (c *verifyRun) walk(ctx context.Context, tables []*tableAsked) (walked []*tableAsked, err error) {
	cs := candidates{}
	for _, t := range tables {
		begun := time.Now()
		err = c.table(ctx, t, cs)
		t.at.Seconds = time.Since(begun).Seconds()
		if walked = append(walked, t); err != nil {
			break
		}
	}
	if err == nil {
		err = c.settled(ctx, cs)
	}
	if errors.Is(err, errVerifyFull) {
		c.report.Partial, err = true, nil
	}
	return walked, err
}

// each asks several nodes at once; the answers come in the order of nodes.
func (c *verifyRun) each(ctx context.Context, nodes []string, q *apply.VerifyQuestion) ([]*apply.VerifyAnswer, error) {
	answers, errs := make([]*apply.VerifyAnswer, len(nodes)), make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, node := range nodes {
		wg.Go(func() { answers[i], errs[i] = c.ask(ctx, node, q) })
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			return nil, fmt.Errorf("node %s: %w", nodes[i], err)
		}
	}
	return answers, nil
}

// tables finds out what can be compared.
func (c *verifyRun) tables(ctx context.Context) ([]*tableAsked, error) {
	answers, err := c.each(ctx, c.nodes, &apply.VerifyQuestion{Kind: apply.VerifyTables})
	if err != nil {
		return nil, err
	}
	have := make([]map[string]*apply.VerifyTable, len(answers))
	all := map[string]*apply.VerifyTable{}
	for i, a := range answers {
		have[i] = map[string]*apply.VerifyTable{}
		for _, t := range a.Tables {
			if (c.o.Table == "" || capture.Matches(c.o.Table, t.Schema, t.Name)) && (c.only == nil || c.only[t.String()]) {
				t.Columns = slices.DeleteFunc(slices.Clone(t.Columns), func(col string) bool { return c.cells != nil && !c.cells(col) && !slices.Contains(t.Key, col) })
				have[i][t.String()], all[t.String()] = t, t
			}
		}
	}
	if c.o.Table != "" && len(all) == 0 {
		return nil, noSuchTable(c.o.Table)
	}
	var tables []*tableAsked
	for _, name := range slices.Sorted(maps.Keys(all)) {
		t, reasons := c.agreed(have, name)
		for _, r := range reasons {
			c.report.Skipped = append(c.report.Skipped, VerifySkipped{name, r})
		}
		if t != nil {
			tables = append(tables, &tableAsked{VerifyTable: t, at: VerifiedTable{Table: name}})
		}
	}
	return tables, nil
}

func noSuchTable(pattern string) error {
	return &configError{fmt.Sprintf("no replicated table fits %q; pgbridge verify without --table compares all of them", pattern)}
}

// agreed is what all nodes have of a table, nil if it cannot be compared, and what is left out.
func (c *verifyRun) agreed(have []map[string]*apply.VerifyTable, name string) (*apply.VerifyTable, []string) {
	var t *apply.VerifyTable
	var left []string
	for i, node := range c.nodes {
		h := have[i][name]
		switch {
		case h == nil:
			return nil, []string{"it is not replicated at node " + node + ", or is not there"}
		case h.Problem != "":
			return nil, []string{"at node " + node + ": " + h.Problem}
		case t == nil:
			one := *h
			one.Rows = c.rows
			t = &one
			continue
		case !slices.Equal(slices.Sorted(slices.Values(t.Key)), slices.Sorted(slices.Values(h.Key))):
			return nil, []string{fmt.Sprintf("its key is (%s) at node %s and (%s) at node %s; give it the same primary key", strings.Join(t.Key, ", "), c.nodes[0],
				strings.Join(h.Key, ", "), node)}
		}
		t.Merged = t.Merged || h.Merged
		both := slices.DeleteFunc(slices.Clone(t.Columns), func(col string) bool { return !slices.Contains(h.Columns, col) })
		for _, col := range slices.Concat(t.Columns, h.Columns) {
			if !slices.Contains(both, col) {
				left = append(left, fmt.Sprintf("column %s is not on all nodes and is left out", col))
			}
		}
		t.Columns = both
	}
	slices.Sort(left)
	return t, slices.Compact(left)
}

// pace holds a comparison back to so many rows a second.
type pace struct {
	rate int
	from time.Time
	rows int64
}

// paceSlack is how far a comparison may run ahead, or make good what it has lost.
const paceSlack = time.Second

// wait is called with rows that were read.
func (p *pace) wait(ctx context.Context, rows int) error {
	if p.rate <= 0 {
		return ctx.Err()
	}
	p.rows += int64(rows)
	due := p.from.Add(time.Duration(float64(p.rows) / float64(p.rate) * float64(time.Second)))
	late := time.Until(due)
	if late < -paceSlack {
		p.from, p.rows = time.Now().Add(-paceSlack), 0
	}
	if late <= 0 {
		return ctx.Err()
	}
	return rest(ctx, late)
}

// show puts the first differences into the report.
func (c *verifyRun) show() {
	c.report.Differences = len(c.found)
	for i, d := range c.found {
		if d.Mended {
			c.report.Mended++
		}
		if i < c.o.Limit {
			c.report.Found = append(c.report.Found, *d)
		}
	}
}
