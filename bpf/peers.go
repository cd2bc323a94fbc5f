package bpf

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// slotBusy is CM_SLOT_BUSY of peers.h, which an instruction extends by its sign.
const slotBusy = math.MinInt32

// haveExchange says whether programs may compare and exchange words of memory:
// since Linux 5.12. Loading one is the only way to find out.
var haveExchange = sync.OnceValue(func() error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSock, AttachType: ebpf.AttachCgroupInetSockRelease, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R0, 1),
			asm.StoreMem(asm.RFP, -8, asm.R0, asm.DWord),
			asm.CmpXchg.Mem(asm.RFP, asm.R0, asm.DWord, -8),
			asm.Mov.Imm(asm.R0, 1),
			asm.Return(),
		},
	})
	if err != nil {
		return err
	}
	return p.Close()
})

// withoutExchange makes programs run where they cannot exchange: a comparison
// then finds the slot busy, so that every peer goes into the hash, and what
// comes after a comparison that succeeds never runs.
func withoutExchange(spec *ebpf.CollectionSpec) {
	for _, p := range spec.Programs {
		for i := range p.Instructions {
			ins := &p.Instructions[i]
			if ins.OpCode.Class() != asm.StXClass {
				continue
			}
			switch ins.OpCode.AtomicOp() {
			case asm.CmpXchg:
				replace(ins, asm.Mov.Imm(asm.R0, slotBusy))
			case asm.Xchg:
				replace(ins, asm.Mov.Reg(ins.Src, ins.Src))
			}
		}
	}
}

// replace leaves labels and the source line where they are.
func replace(ins *asm.Instruction, by asm.Instruction) {
	by.Metadata = ins.Metadata
	*ins = by
}

// findSpilled notes at each slot whether a socket of it is in the hash, and then
// has programs rely on it. Until here they looked into the hash for every socket,
// because those that ran before may have put sockets there without a note. Nor are
// notes of former lives of use, whose sockets may be gone.
//
// Programs put a socket into the hash first and note it then, so each is noted by
// its program or seen here, whenever the note of its slot is taken away. Programs
// that began before a step may have seen what was there before it, and end first.
func (d *Datapath) findSpilled(Options) error {
	slots, err := openWindow[clustermeshCmTcpSlot](d.coll.Maps[clustermeshMapCmTcpSlots])
	if err != nil {
		return fmt.Errorf("map memory of %s: %w", clustermeshMapCmTcpSlots, err)
	}
	all := slots.upTo(uint64(len(slots.all)))
	for i := range all {
		atomic.StoreUint32(&all[i].Spilled, 0)
	}
	err = errors.Join(d.WaitRCU(), eachKey(d.coll.Maps[clustermeshMapCmTcpPeers], func(cookie uint64) {
		atomic.StoreUint32(&all[cookie%uint64(len(all))].Spilled, 1)
	}), d.WaitRCU())
	if err == nil {
		atomic.StoreUint32(&d.settings.all[0].Spilled, 0)
	}
	return errors.Join(err, slots.close())
}

// eachKey calls visit with every key that a hash of peers has all the while.
func eachKey(m *ebpf.Map, visit func(cookie uint64)) error {
	cookies := make([]uint64, countAtOnce)
	err := eachBatch(m, cookies, make([]clustermeshCmPeer, countAtOnce), func(n int) {
		for _, cookie := range cookies[:n] {
			visit(cookie)
		}
	})
	if err != nil {
		return fmt.Errorf("read remembered sockets: %w", err)
	}
	return nil
}

// forget takes sockets out of what the programs remember, as their release does:
// they are gone, whether or not their owners have noticed.
func (s *Sockets) forget(cookies []uint64) error {
	if len(cookies) == 0 {
		return nil
	}
	slots, err := openWindow[socketsCmTcpSlot](s.coll.Maps[socketsMapCmTcpSlots])
	if err != nil {
		return fmt.Errorf("map memory of %s: %w", socketsMapCmTcpSlots, err)
	}
	all := slots.upTo(uint64(len(slots.all)))
	var errs []error
	for _, cookie := range cookies {
		if !atomic.CompareAndSwapUint64(&all[cookie%uint64(len(all))].Cookie, cookie, 0) {
			errs = append(errs, deleteKey(s.coll.Maps[socketsMapCmTcpPeers], cookie))
		}
	}
	return errors.Join(append(errs, slots.close())...)
}
