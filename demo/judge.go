package demo

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// judge compares all rows of all nodes and all counts. A [FoundError] says what is wrong.
func (d *demo) judge(ctx context.Context) error {
	d.screen.title("Final comparison")
	begun := time.Now()
	if err := d.checkpoint(ctx); err != nil {
		return fmt.Errorf("wait until everything has arrived: %w", err)
	}
	d.screen.say("The writers have stopped; %s later everything had arrived everywhere.", age(time.Since(begun)))
	var faults []string
	for _, part := range []func(context.Context) ([]string, error){d.judgeRows, d.judgeCounts, d.judgeLost, d.judgeLooks} {
		found, err := part(ctx)
		if err != nil {
			return err
		}
		faults = append(faults, found...)
	}
	d.screen.say("")
	if len(faults) > 0 {
		d.screen.say("NOT EQUAL: %s.", strings.Join(faults, "; "))
		return &FoundError{faults}
	}
	d.screen.say("Every row of every table is the same on all %d nodes. %s in all.", len(d.nodes), strings.TrimSpace(took(d.begun)))
	return nil
}

// judgeRows compares the tables, and shows the first rows that differ.
func (d *demo) judgeRows(ctx context.Context) ([]string, error) {
	tables, err := d.settledTables(ctx)
	if err != nil {
		return nil, err
	}
	s := d.screen
	head := fmt.Sprintf("  %-22s %9s  %-32s", "table", "rows", "digest on "+d.nodes[0].name)
	for _, n := range d.nodes[1:] {
		head += fmt.Sprintf("  %-6s", "on "+n.name)
	}
	s.say("%s", strings.TrimRight(head, " "))
	var faults []string
	for _, t := range tables {
		line := fmt.Sprintf("  %-22s %9s  %-32s", t.name, grouped(t.prints[0].rows), t.prints[0].digest)
		for _, p := range t.prints[1:] {
			verdict := "same"
			if p != t.prints[0] {
				verdict = "DIFFERS"
			}
			line += fmt.Sprintf("  %-6s", verdict)
		}
		s.say("%s", strings.TrimRight(line, " "))
	}
	for _, t := range tables {
		for i, p := range t.prints {
			if p == t.prints[0] {
				continue
			}
			diff, err := differences(ctx, t.name, d.nodes[0], d.nodes[i])
			if err != nil {
				return nil, err
			}
			s.say("%s\n%s", t.name+":", diff)
			faults = append(faults, fmt.Sprintf("%s differs between %s and %s", t.name, d.nodes[0].name, d.nodes[i].name))
		}
	}
	return faults, nil
}

// judgeCounts compares what was committed on each node with what the others have applied of it.
func (d *demo) judgeCounts(ctx context.Context) ([]string, error) {
	d.screen.say("  %-6s %9s  = %9s %9s %9s   %9s %9s", "node", "commits", "inserts", "updates", "deletes", "applied", "conflicts")
	var faults []string
	for _, n := range d.nodes {
		sight, err := n.look(ctx)
		if err != nil {
			return nil, err
		}
		applied := 0
		for _, m := range d.nodes {
			if m == n {
				continue
			}
			applied += sight.applied[m.name]
			if committed := m.ledger.count(); sight.applied[m.name] != committed {
				faults = append(faults, fmt.Sprintf("%s applied %s transactions of %s, which committed %s",
					n.name, grouped(sight.applied[m.name]), m.name, grouped(committed)))
			}
		}
		rows := n.ledger.tally()
		d.screen.say("  %-6s %9s    %9s %9s %9s   %9s %9s", n.name, grouped(n.ledger.count()),
			grouped(rows.inserts), grouped(rows.updates), grouped(rows.deletes), grouped(applied), grouped(sight.conflicts))
	}
	return faults, nil
}

// judgeLost says what is left of nodes that were lost for good: all others must have the same of them.
func (d *demo) judgeLost(ctx context.Context) ([]string, error) {
	var faults []string
	for _, lost := range d.lost {
		var least, most int
		for i, n := range d.nodes {
			sight, err := n.look(ctx)
			if err != nil {
				return nil, err
			}
			applied := sight.applied[lost.name]
			if i == 0 {
				least, most = applied, applied
			}
			least, most = min(least, applied), max(most, applied)
		}
		if least != most {
			faults = append(faults, fmt.Sprintf("of what %s had written some nodes have %s transactions, others %s", lost.name, grouped(least), grouped(most)))
			continue
		}
		committed := lost.ledger.count()
		d.screen.say("  All others have the same %s transactions of %s; %s that its own users had seen committed had not left it.",
			grouped(most), lost.name, grouped(max(0, committed-most)))
	}
	return faults, nil
}

// judgeLooks says what the observers saw, and looks once more at everything.
func (d *demo) judgeLooks(ctx context.Context) ([]string, error) {
	if d.nodes[0].world != shop {
		return nil, nil
	}
	for _, n := range d.nodes {
		var partial int
		err := n.conn.QueryRow(ctx, partialSQL).Scan(&partial)
		if err != nil {
			return nil, fmt.Errorf("look for partial transactions on node %s: %w", n.name, err)
		}
		d.looks.total++
		d.looks.partial += partial
	}
	if d.looks.partial > 0 {
		return []string{fmt.Sprintf("%s orders were seen without their account or some of their lines", grouped(d.looks.partial))}, nil
	}
	d.screen.say("  In %s looks no node ever showed a part of a transaction, nor an order without its account.", grouped(d.looks.total))
	return nil, nil
}
