package doctor

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/pgbridge/pgbridge/catalog"
	"github.com/pgbridge/pgbridge/topology"
)

// alarms are those of the bridge that runs.
func alarms(f *Facts) []Finding {
	all := slices.Clone(f.Bridge.Alarms)
	for i := range all {
		if all[i].Why == "" {
			all[i].Why = "the bridge that runs here has this alarm"
		}
	}
	if f.Bridge.Waiting != "" {
		all = append(all, Finding{"bridge-waits", Error, "the bridge that runs here waits: " + f.Bridge.Waiting,
			"nothing is read and nothing applied until then", "mend what it waits for"})
	}
	return all
}

// probe: a write has gone the whole way, or has not.
func probe(f *Facts) []Finding {
	if f.Bridge.Probe != nil || f.Bridge.Waiting != "" {
		return nil
	}
	return one("probe", Error, "a write of the doctor's did not come through WAL and broker: "+f.Bridge.Failed,
		"so do not local changes", "see the other findings, the bridge's log, and pgbridge status")
}

func unasked(f *Facts) []Finding {
	var all []Finding
	for _, n := range f.Nodes {
		if n.Problem != "" {
			all = append(all, Finding{"node-unasked", Warning, fmt.Sprintf("node %s could not be asked: %s", n.Name, n.Problem),
				"whether its tables, sequences, policies and clock fit this node's is not known",
				fmt.Sprintf("let its bridge run, and its broker be reached at topology.nodes.%s; then run pgbridge doctor again", n.Name)})
		}
	}
	return all
}

func topologies(f *Facts) []Finding {
	var all []Finding
	for _, n := range f.Nodes {
		if n.Problem != "" {
			continue
		}
		if d := topology.Difference(f.Config.Graph().String(), n.Graph); d != "" {
			all = append(all, Finding{"topology-differs", Error, fmt.Sprintf("the topology of node %s is not this one's: %s", n.Name, d),
				"what has no way between the nodes waits, and a node that one of them does not know of is not waited for",
				"give all nodes the same topology, and start their bridges again"})
		}
	}
	return all
}

func policies(f *Facts) []Finding {
	var all []Finding
	own := f.Config.Policies()
	for _, n := range f.Nodes {
		if n.Problem != "" {
			continue
		}
		for _, key := range slices.Sorted(maps.Keys(own)) {
			if theirs := n.Policy[key]; theirs != own[key] {
				all = append(all, Finding{"policies-differ", Error, fmt.Sprintf("%s is %q here and %q on node %s", key, own[key], theirs, n.Name),
					"nodes that decide conflicts by other rules would end with other rows, so they do not read each other", "let all nodes have the same conflict section, and start their bridges again"})
			}
		}
	}
	return all
}

// clocks compares this machine's clock with those of the others, by their answers and by what the bridge has measured.
func clocks(f *Facts) []Finding {
	apart := map[string]NodeClock{}
	if f.Server != nil {
		for _, c := range f.Server.NodeClocks {
			apart[c.Node] = c
		}
	}
	for _, n := range f.Nodes {
		if n.Problem == "" {
			apart[n.Name] = NodeClock{n.Name, n.Ahead, n.Within}
		}
	}
	var all []Finding
	for _, name := range slices.Sorted(maps.Keys(apart)) {
		c := apart[name]
		off := c.Ahead.Abs() - c.Within
		if off < clockNoise {
			continue
		}
		s, more := Warning, ""
		if off > f.Config.Apply.MaxClockSkew {
			s, more = Error, fmt.Sprintf("; beyond apply.max_clock_skew of %s transactions wait", f.Config.Apply.MaxClockSkew)
		}
		where := "behind"
		if c.Ahead > 0 {
			where = "ahead of"
		}
		all = append(all, Finding{"clock-differs", s, fmt.Sprintf("the clock of node %s is %s %s this one's", name, c.Ahead.Abs().Round(time.Millisecond), where),
			"of concurrent writes, those of the node whose clock is ahead win" + more, "run NTP or chrony on both"})
	}
	return all
}

// delivery: another node applies what this one writes.
func delivery(f *Facts) []Finding {
	var all []Finding
	for _, n := range f.Nodes {
		if n.Problem == "" && n.Behind > 0 {
			all = append(all, Finding{"delivery", Warning, fmt.Sprintf("node %s lacks %d transactions of this node that were there when it was asked first", n.Name, n.Behind),
				"its users do not see what was written here meanwhile", fmt.Sprintf("see pgbridge status on node %s, for what it waits", n.Name)})
		}
	}
	return all
}

// judgement is what a difference of two nodes' tables means.
type judgement struct {
	severity  Severity
	code      string
	why, mend string // mend: what to do with the table, by its name
}

// judgements are by the kind of difference.
var judgements = map[catalog.Kind]judgement{
	catalog.EncodingDiffers: {Warning, "encoding-differs", "text that one of the two encodings lacks is refused there, and its transaction parked",
		"dump the database whose encoding has less and restore it into one that is made WITH ENCODING 'UTF8'"},
	catalog.DefaultCollationDiffers: {Note, "collation-differs", "text is sorted in other ways on the two nodes; what is equal is the same", "nothing, unless applications rely on the order"},
	catalog.TableMissingThere: {Error, "table-missing", "transactions that write it wait there, and with them all that this node writes later",
		"create %s on that node, or exclude it on all nodes (tables)"},
	catalog.TableMissingHere: {Error, "table-missing", "transactions that write it wait here, and with them all that that node writes later",
		"create %s on this node, with a key, or exclude it on all nodes (tables)"},
	catalog.ColumnDiffers: {Error, "column-differs", "a transaction that writes the column waits where it is missing, or is refused where its value does not fit",
		"run ALTER TABLE %s on one of the two nodes, so that they have the same columns"},
	catalog.ColumnWider: {Warning, "column-wider", "a value that fits the wider type only is refused on the other node, and its transaction parked",
		"run ALTER TABLE %s ALTER COLUMN ... TYPE bigint where it is narrower"},
	catalog.TypeDiffers: {Error, "type-differs", "a value that one of the two types lacks is refused there, and its transaction parked",
		"run ALTER TYPE on one of the two nodes, so that the type that %s has is the same"},
	catalog.NullDiffers: {Warning, "null-differs", "a NULL of the node that allows it is refused on the other one, and its transaction parked",
		"run ALTER TABLE %s ALTER COLUMN ... SET NOT NULL, or DROP NOT NULL, on one of the two nodes"},
	catalog.KeyDiffers: {Error, "key-differs", "rows are found by their key: the two nodes do not take the same rows for the same",
		"give %s the same primary key, or REPLICA IDENTITY USING INDEX, on both nodes"},
	catalog.EqualityDiffers: {Error, "equality-differs", "two values that are one key on a node are two on the other",
		"run ALTER TABLE %s ALTER COLUMN ... TYPE ... COLLATE ... on one of the two nodes"},
	catalog.CollationDiffers: {Note, "collation-differs", "text is sorted in other ways on the two nodes; what is equal is the same",
		"run ALTER TABLE %s ALTER COLUMN ... TYPE ... COLLATE ... on one of the two nodes, if applications rely on the order"},
	catalog.UniqueDiffers: {Warning, "unique-differs", "of rows that collide only the node with the index keeps one aside: the two then show other rows",
		"make the same unique indexes of %s on both nodes"},
	catalog.CheckDiffers: {Warning, "check-differs", "a row that the constraint refuses is parked on the node that has it",
		"give %s the same constraints on both nodes"},
}

// tables compares this node's tables with those of the others.
func tables(f *Facts) []Finding {
	var all []Finding
	if f.Tables == nil {
		return nil
	}
	for _, n := range f.Nodes {
		if n.Tables == nil {
			continue
		}
		here := f.Tables
		if n.Without != nil {
			here = here.Only(func(schema, table string) bool { return !n.Without(schema, table) })
		}
		for _, d := range catalog.Differences(here, n.Tables) {
			j := judgements[d.Kind]
			text, mend := d.Text, j.mend
			if d.Table != "" {
				text, mend = fmt.Sprintf("table %s %s", d.Table, d.Text), fmt.Sprintf(j.mend, d.Table)
			}
			all = append(all, Finding{j.code, j.severity, fmt.Sprintf("%s (there: node %s)", text, n.Name), j.why, mend})
		}
	}
	return all
}
