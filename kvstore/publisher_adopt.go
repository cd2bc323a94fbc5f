package kvstore

import (
	"context"
	"fmt"
	"hash/maphash"
)

// adopt learns what the store has under the prefix, takes a former canary away
// and queues every difference.
func (p *Publisher) adopt(ctx context.Context) error {
	if err := p.dropCanary(ctx); err != nil {
		return fmt.Errorf("delete the former canary %s: %w", p.cfg.Canary, err)
	}
	found, err := p.list(ctx)
	if err != nil {
		return fmt.Errorf("list what is under %s: %w", p.cfg.Prefix, err)
	}
	p.merge(found)
	p.backoff.Reset()
	return nil
}

func (p *Publisher) dropCanary(ctx context.Context) error {
	if p.cfg.Canary == "" {
		return nil
	}
	r, err := p.store.Range(ctx, p.cfg.Canary, "", 1, 0)
	if err != nil || len(r.KVs) == 0 {
		return err
	}
	return p.store.Apply(ctx, []Op{{Key: p.cfg.Canary, Delete: true}})
}

// list returns the hashes of all values under the prefix at one revision.
func (p *Publisher) list(ctx context.Context) (map[string]uint64, error) {
	found := make(map[string]uint64)
	start, end, revision := p.cfg.Prefix, PrefixEnd(p.cfg.Prefix), int64(0)
	for {
		r, err := p.store.Range(ctx, start, end, p.cfg.PageSize, revision)
		if err != nil {
			return nil, err
		}
		if revision == 0 {
			revision, p.life = r.Revision, r.Life
		}
		for _, kv := range r.KVs {
			found[kv.Key] = maphash.Bytes(p.seed, kv.Value)
		}
		if r.Life != p.life || r.Revision < revision {
			return nil, ErrLifeChanged
		}
		if !r.More || len(r.KVs) == 0 {
			p.seen(r)
			return found, nil
		}
		start = r.KVs[len(r.KVs)-1].Key + "\x00"
	}
}

func (p *Publisher) merge(found map[string]uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listed, p.armed = true, false
	p.stats.Refills++
	for key, hash := range found {
		e := p.entry(key)
		e.stored, e.certain, e.hash = true, true, hash
	}
	for key, e := range p.entries {
		if _, stored := found[key]; !stored {
			e.stored, e.certain = false, true
		}
		if e.wanted {
			p.enqueue(key, e)
		} else {
			p.release(key, e)
		}
	}
	p.delayBarriers()
	p.arm()
}

// delayBarriers moves the barriers behind what was just queued: the store may
// have lost what they stood behind.
func (p *Publisher) delayBarriers() {
	for mark := range p.barriers {
		p.queue.remove(mark)
		p.queue.push(mark)
	}
}

// checkLife finds out whether the store is still the one that was filled. It
// reads one key that is not there: of a range, etcd counts all the rest.
func (p *Publisher) checkLife(ctx context.Context) error {
	r, err := p.store.Range(ctx, p.cfg.Prefix, "", 1, 0)
	if err != nil {
		return fmt.Errorf("check the store behind %s: %w", p.cfg.Prefix, err)
	}
	if r.Life != p.life || r.Revision < p.revision {
		p.cfg.Log.Warn("store lost its data, will fill it again", "key", p.cfg.Prefix, "rev", r.Revision)
		p.Resync()
	}
	p.seen(r)
	return nil
}
