package bridge

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/conflict"
)

// topologyNote is the note by which a node tells others of the graph that it was given.
const topologyNote = "topology"

// goneNote is the note by which a node tells others which nodes are gone.
const goneNote = "gone"

// notes are what all nodes must have alike, or should: a stream's notes tell its readers.
func (l *life) notes() map[string]string {
	all := l.cfg.Policies()
	all[topologyNote] = l.cfg.Graph().String()
	var gone []string
	for _, n := range l.applier.GoneNodes() {
		gone = append(gone, n.Node)
	}
	all[goneNote] = strings.Join(gone, " ")
	return all
}

// mergePolicies hands the configured policies to apply. Their names were checked when the configuration was read.
func mergePolicies(cfg *config.Config) []apply.MergePolicy {
	var all []apply.MergePolicy
	for _, t := range cfg.Conflict.Tables {
		p := apply.MergePolicy{Pattern: t.Match,
			Match: func(schema, table string) bool { return capture.Matches(t.Match, schema, table) }}
		if p.Rows, p.Function = ruleOf(t.Rows); p.Rows == conflict.Home {
			column, at := homes(cfg)
			p.Home = apply.MergeHome{Setting: fmt.Sprint(cfg.Conflict.Home, cfg.Conflict.HomeNodes), Column: column, At: at}
		}
		if t.Deletes != "" {
			p.Deletes, _ = conflict.DeletesByName(t.Deletes)
		}
		for _, c := range t.Columns {
			rule, function := ruleOf(c.Policy)
			p.Columns = append(p.Columns, apply.MergeColumns{Names: c.Names, Rule: rule, Function: function})
		}
		all = append(all, p)
	}
	return all
}

// writersOf says who writes which tables.
func writersOf(cfg *config.Config) (all apply.Writers) {
	for _, s := range cfg.Topology.Writers {
		pattern, nodes := config.SplitTableNodes(s)
		all = append(all, apply.TableWriters{Nodes: nodes,
			Match: func(schema, table string) bool { return capture.Matches(pattern, schema, table) }})
	}
	return all
}

// residency says which nodes have which tables: all that is for a table counts, and what nothing is for all nodes have.
type residency []tableNodes

// tableNodes are the nodes that have the tables of a pattern.
type tableNodes struct {
	pattern string
	nodes   []string
}

// is reports whether a line is for a table.
func (x tableNodes) is(schema, table string) bool { return capture.Matches(x.pattern, schema, table) }

func residencyOf(cfg *config.Config) residency {
	all := make(residency, len(cfg.Topology.Residency))
	for i, s := range cfg.Topology.Residency {
		all[i].pattern, all[i].nodes = config.SplitTableNodes(s)
	}
	return all
}

// at reports whether a node has a table. "", whom nobody knows, has those that every node has.
func (r residency) at(node, schema, table string) bool {
	for _, x := range r {
		if !slices.Contains(x.nodes, node) && capture.Matches(x.pattern, schema, table) {
			return false
		}
	}
	return true
}

// without says which tables a node does not have; nil: it has all.
func (r residency) without(node string) func(schema, table string) bool {
	for _, x := range r {
		if !slices.Contains(x.nodes, node) {
			return func(schema, table string) bool { return !r.at(node, schema, table) }
		}
	}
	return nil
}

// keeps refuses to tell who asks of a table that it does not have.
func (r residency) keeps(asker, schema, table string) error {
	if r.at(asker, schema, table) {
		return nil
	}
	return fmt.Errorf("table %s.%s is not for node %s (topology.residency)", schema, table, asker)
}

// lacking is a pattern of tables that other has, and node may not have; empty: there is none.
func (r residency) lacking(node, other string) string {
	for _, x := range r {
		if slices.Contains(x.nodes, other) && !slices.Contains(x.nodes, node) {
			return x.pattern
		}
	}
	return ""
}

// ruleOf is the rule of a policy that was checked, with its function; none means that the later write wins.
func ruleOf(policy string) (conflict.Rule, string) {
	if policy == "" {
		return conflict.Latest, ""
	}
	name, function := config.SplitPolicy(policy)
	rule, _ := conflict.RuleByName(name)
	return rule, function
}

// homes says which column of a table names the node at which a row should be written, and whether a value means a node; both are nil
// if no table has one.
func homes(cfg *config.Config) (column func(schema, table string) string, at func(node string, value []byte) bool) {
	if len(cfg.Conflict.Home) == 0 {
		return nil, nil
	}
	nodes := map[string]string{}
	for _, s := range cfg.Conflict.HomeNodes {
		value, node := config.SplitHome(s)
		nodes[value] = node
	}
	column = func(schema, table string) string {
		for _, s := range cfg.Conflict.Home {
			if pattern, column := config.SplitHome(s); capture.Matches(pattern, schema, table) {
				return column
			}
		}
		return ""
	}
	return column, func(node string, value []byte) bool {
		home, ok := nodes[string(value)]
		return ok && home == node || !ok && string(value) == node
	}
}

// foreignKeyPolicies are the policies for orphans, which were checked.
func foreignKeyPolicies(cfg *config.Config) []apply.ForeignKeyPolicy {
	var all []apply.ForeignKeyPolicy
	for _, s := range cfg.Conflict.ForeignKeys {
		pattern, policy := config.SplitForeignKey(s)
		all = append(all, apply.ForeignKeyPolicy{Orphans: policy,
			Match: func(schema, table, constraint string) bool {
				return capture.Matches(pattern, schema, table+"."+constraint)
			}})
	}
	return all
}
