package capture

import "github.com/pgbridge/pgbridge/wire"

// sealed seals what of b stands from at on, if the relation's rows are.
func (r *relation) sealed(b []byte, at int, part wire.SealedPart) []byte {
	return r.sealedBy(r.seal, b, at, part)
}

// sealedBy seals what of b stands from at on; nil seals nothing.
func (r *relation) sealedBy(s *wire.Sealer, b []byte, at int, part wire.SealedPart) []byte {
	if s == nil {
		return b
	}
	r.plain = append(r.plain[:0], b[at:]...)
	return s.Append(b[:at], part, r.plain)
}

// sealer is what rows of a table are sealed by; nil: by nothing.
func (o *Options) sealer(schema, table string) *wire.Sealer {
	if o.Seal == nil {
		return nil
	}
	return o.Seal(schema, table)
}

// appendTruncate appends a TRUNCATE of relations: one record for those that are sealed alike.
func appendTruncate(dst []byte, options byte, rels []*relation) []byte {
	var ids []uint32
	for i, r := range rels {
		first := true
		for _, before := range rels[:i] {
			first = first && before.seal != r.seal
		}
		if !first {
			continue
		}
		ids = ids[:0]
		for _, s := range rels[i:] {
			if s.seal == r.seal {
				ids = append(ids, s.ID)
			}
		}
		at := len(dst)
		dst = r.sealed(wire.AppendTruncate(dst, options, ids), at, wire.SealedChange)
	}
	return dst
}

// appendNote is wire.AppendNote, and seals what names rows of tables that are sealed.
func (t *tagger) appendNote(dst []byte, prefix string, content []byte) ([]byte, bool) {
	at := len(dst)
	dst, ok := wire.AppendNote(dst, prefix, content)
	if !ok || prefix != wire.AskPrefix {
		return dst, ok
	}
	ask, err := wire.ParseAsk(content)
	if err != nil {
		return dst[:at], false
	}
	seal, ok := t.askSealer(ask)
	if !ok {
		return dst[:at], false
	}
	r := relation{seal: seal}
	return r.sealed(dst, at, wire.SealedOther), true
}
