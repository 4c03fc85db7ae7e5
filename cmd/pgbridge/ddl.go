package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgbridge/pgbridge/bridge"
)

func newDDL(b backend, c terminal) *cobra.Command {
	var flags configFlags
	var options bridge.SchemaOptions
	var list, asJSON bool
	var done, automatic string
	cmd := &cobra.Command{
		Use:   "ddl SQL --config file",
		Short: "Change the schema here and on all other nodes",
		Long: `Run one or more statements that change the schema, in one transaction, here and on every other node in their place
in the stream of changes. What every node can take at once (a new column, table or index) needs nothing else; a change
that takes something away, renames it or forbids something needs --breaking, and waits for all nodes. Migrations call
the same in SQL: SELECT pgbridge.ddl('ALTER TABLE ...').

--automatic on makes event triggers by which schema changes that are made on this node travel by themselves. It takes a
superuser. In a session, SET pgbridge.ddl = 'local' keeps changes on the node, 'breaking' confirms them.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			asked := len(args)
			if list {
				asked++
			}
			for _, flag := range []string{done, automatic} {
				if flag != "" {
					asked++
				}
			}
			switch {
			case asked != 1 || len(args) > 1:
				return usagef("ddl takes one argument, the SQL in quotes; or --list, --done or --automatic")
			case automatic != "" && automatic != "on" && automatic != "off":
				return usagef("--automatic is on or off, not %q", automatic)
			case automatic != "":
				if err := b.automaticSchema(cmd.Context(), cfg, automatic == "on"); err != nil {
					return err
				}
				said := "schema changes that are made on this node travel by themselves"
				if automatic == "off" {
					said = "schema changes stay on this node, but for those by pgbridge ddl"
				}
				_, err := fmt.Fprintln(c.out, said)
				return err
			case list:
				all, err := b.schemaChanges(cmd.Context(), cfg)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(c, append([]bridge.SchemaChange{}, all...))
				}
				return printSchemaChanges(c, all)
			case done != "":
				return b.schemaDone(cmd.Context(), cfg, done)
			}
			id, err := b.changeSchema(cmd.Context(), cfg, args[0], options)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(c, map[string]int64{"id": id})
			}
			_, err = fmt.Fprintf(c.out, "schema changed here, as change %d; the other nodes follow\n", id)
			return err
		},
	}
	flags.add(cmd)
	cmd.Args = cobra.ArbitraryArgs // SQL, or a flag instead
	cmd.Flags().BoolVar(&options.Breaking, "breaking", false, "confirm a breaking change, and make it when all nodes have what is here")
	cmd.Flags().DurationVar(&options.Wait, "wait", 30*time.Second, "with --breaking: how long to wait for the nodes")
	cmd.Flags().BoolVar(&list, "list", false, "list the changes that are made here")
	cmd.Flags().StringVar(&done, "done", "", "have a change of another node, origin:seq, count as made here by hand")
	cmd.Flags().StringVar(&automatic, "automatic", "", "on: schema changes made on this node travel by themselves; off: not any more")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, with the keys of the log")
	return cmd
}

func printSchemaChanges(c terminal, all []bridge.SchemaChange) error {
	var text strings.Builder
	if len(all) == 0 {
		text.WriteString("no schema change was made through pgbridge\n")
	} else {
		t := newTable(&text)
		t.row("ID", "TRANSACTION", "MADE HERE", "ROLE", "SQL", "CHANGES")
		for _, s := range all {
			name := s.Origin + ":-"
			if s.Seq != 0 {
				name = fmt.Sprintf("%s:%d", s.Origin, s.Seq)
			}
			t.row(fmt.Sprint(s.ID), name, clock(s.At), s.Role, strings.Join(strings.Fields(s.SQL), " "), orDash(strings.Join(s.Changes, ", ")))
		}
		t.flush()
	}
	_, err := c.out.Write([]byte(text.String()))
	return err
}
