package bridge

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/capture"
)

// compare compares each table at those of the nodes, the lead first, that have it: one comparison for all tables that are at the same ones.
func (r residency) compare(ctx context.Context, ask rowAsker, nodes []string, o VerifyOptions, tell func(VerifyProgress)) (*VerifyReport, error) {
	if len(r) == 0 {
		return newVerifyRun(ask, nodes, o, tell).run(ctx)
	}
	a, err := ask(ctx, nodes[0], &apply.VerifyQuestion{Kind: apply.VerifyTables})
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", nodes[0], err)
	}
	groups := map[string]map[string]bool{} // tables, by the nodes that have them
	for _, t := range a.Tables {
		if o.Table != "" && !capture.Matches(o.Table, t.Schema, t.Name) {
			continue
		}
		at := slices.DeleteFunc(slices.Clone(nodes), func(node string) bool { return !r.at(node, t.Schema, t.Name) })
		k := strings.Join(at, " ")
		if groups[k] == nil {
			groups[k] = map[string]bool{}
		}
		groups[k][t.String()] = true
	}
	if o.Table != "" && len(groups) == 0 {
		return nil, noSuchTable(o.Table)
	}
	all := newVerifyRun(ask, nodes, o, tell).report
	for _, k := range slices.Sorted(maps.Keys(groups)) {
		at := strings.Fields(k)
		if len(at) < 2 || o.From != "" && !slices.Contains(at, o.From) {
			for _, name := range slices.Sorted(maps.Keys(groups[k])) {
				all.Skipped = append(all.Skipped, VerifySkipped{name, "topology.residency has it on other nodes than those that are asked about"})
			}
			continue
		}
		c := newVerifyRun(ask, at, o, tell)
		c.only = groups[k]
		one, err := c.run(ctx)
		if err != nil {
			return nil, err
		}
		all.add(one, o.Limit)
	}
	all.Seconds = time.Since(all.At).Seconds()
	return all, nil
}

// add takes the report of a comparison of other tables in; limit is how many rows are shown.
func (r *VerifyReport) add(o *VerifyReport, limit int) {
	r.Tables = append(r.Tables, o.Tables...)
	r.Rows += o.Rows
	r.Differences += o.Differences
	r.Found = append(r.Found, o.Found[:max(0, min(len(o.Found), limit-len(r.Found)))]...)
	r.Mended += o.Mended
	r.Explained = append(r.Explained, o.Explained...)
	r.Unsettled = append(r.Unsettled, o.Unsettled...)
	r.Skipped = append(r.Skipped, o.Skipped...)
	r.Partial = r.Partial || o.Partial
}
