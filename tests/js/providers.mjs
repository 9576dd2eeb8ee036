// Joins a swarm with js-libp2p and finds out who serves a block. Prints one line of JSON.
// Usage: node providers.mjs MULTIADDR MODEL-ID BLOCK
import './node20.mjs'

import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { identify } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { CID } from 'multiformats/cid'
import { sha256 } from 'multiformats/hashes/sha2'

const RAW = 0x55
const KAD = '/petals-rs/kad/1'

const [address, model, block] = process.argv.slice(2)
const node = await createLibp2p({
  addresses: { listen: [] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: {
    identify: identify(),
    ping: ping(),
    // Private addresses, such as those of a test, are as good as others.
    dht: kadDHT({ protocol: KAD, clientMode: true, peerInfoMapper: passthroughMapper })
  }
})

try {
  const identified = new Promise((resolve) => node.addEventListener('peer:identify', (event) => resolve(event.detail), { once: true }))
  await node.dial(multiaddr(address))
  const { agentVersion, protocols } = await identified

  const name = new TextEncoder().encode(`/petals-rs/block/${model}/${block}`)
  const cid = CID.createV1(RAW, await sha256.digest(name))
  const providers = new Set()
  for await (const provider of node.contentRouting.findProviders(cid, { signal: AbortSignal.timeout(20_000) })) {
    providers.add(provider.id.toString())
    break
  }
  console.log(JSON.stringify({ agent: agentVersion, speaksKad: protocols.includes(KAD), providers: [...providers] }))
} finally {
  await node.stop()
}
