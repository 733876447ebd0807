//! BERT encoder (Devlin et al., arXiv 1810.04805): bidirectional attention, normalized after each sum.

use candle_core::{Context, D, IndexOp, Result, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear, Module, VarBuilder, embedding, layer_norm, linear};

/// Shape of an encoder, as `config.json` states it.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct BertConfig {
    /// Kind of model; checkpoints older than the field have none.
    model_type: Option<String>,
    /// Kind of positions; absent for those that are added to the words.
    position_embedding_type: Option<String>,
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_act: Activation,
    pub(crate) max_position_embeddings: usize,
    type_vocab_size: usize,
    layer_norm_eps: f64,
}

/// Bound of each size. Chosen: far above any encoder, and so small that no product of two exceeds 64 bits.
const MAX_SIZE: usize = 1 << 24;

impl BertConfig {
    /// Checks that the checkpoint is computed as [`Bert`] does: others have the same tensors and other positions.
    ///
    /// # Errors
    /// Names the field that says otherwise.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        for (field, value, expected) in
            [("model_type", &self.model_type, "bert"), ("position_embedding_type", &self.position_embedding_type, "absolute")]
        {
            if let Some(value) = value.as_ref().filter(|value| *value != expected) {
                anyhow::bail!("config.json is not of a BERT encoder: its `{field}` is `{value}`, not `{expected}`");
            }
        }
        self.check_sizes()
    }

    /// Checks that tensors can have these sizes.
    fn check_sizes(&self) -> anyhow::Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
        ];
        if let Some((field, size)) = sizes.into_iter().find(|(_, size)| !(1..=MAX_SIZE).contains(size)) {
            anyhow::bail!("config.json: {field} is {size}, not between 1 and {MAX_SIZE}");
        }
        let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
        if !hidden.is_multiple_of(heads) {
            anyhow::bail!("config.json: num_attention_heads is {heads}, which does not divide hidden_size, {hidden}");
        }
        if !(self.layer_norm_eps > 0.0 && self.layer_norm_eps < 1.0) {
            anyhow::bail!("config.json: layer_norm_eps is {}, not between 0 and 1", self.layer_norm_eps);
        }
        Ok(())
    }
}

/// Activation of the feed-forward layers, by its name in `config.json`.
#[derive(Clone, Copy, Debug, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum Activation {
    Gelu,
    GeluNew,
    Relu,
}

/// Encoder of texts of one segment.
pub(crate) struct Bert {
    words: Embedding,
    /// Embeddings of positions with that of the first segment added: `[max_position_embeddings, hidden_size]`.
    places: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

impl Bert {
    /// Reads the tensors of an encoder, at the root or under `bert`, as checkpoints with a head name them.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub(crate) fn load(weights: &VarBuilder, config: &BertConfig) -> Result<Self> {
        let weights =
            if weights.contains_tensor("embeddings.word_embeddings.weight") { weights.clone() } else { weights.pp("bert") };
        let (wide, from) = (config.hidden_size, weights.pp("embeddings"));
        let positions = embedding(config.max_position_embeddings, wide, from.pp("position_embeddings"))?;
        let segments = embedding(config.type_vocab_size, wide, from.pp("token_type_embeddings"))?;
        Ok(Self {
            words: embedding(config.vocab_size, wide, from.pp("word_embeddings"))?,
            places: positions.embeddings().broadcast_add(&segments.embeddings().i(0)?)?,
            norm: layer_norm(wide, config.layer_norm_eps, from.pp("LayerNorm"))?,
            layers: (0..config.num_hidden_layers)
                .map(|layer| Layer::load(&weights.pp("encoder.layer").pp(layer), config))
                .collect::<Result<_>>()?,
        })
    }

    /// Returns the last hidden states of the tokens of all `texts`, one text after the other: `[tokens, hidden_size]`.
    ///
    /// All rows go through each projection at once; nothing is padded, and tokens attend within their own text.
    ///
    /// # Errors
    /// If there is no text, an id lies outside the vocabulary, or a text has more tokens than there are positions.
    pub(crate) fn forward(&self, texts: &[&[u32]]) -> Result<Tensor> {
        let device = self.places.device();
        let positions: Vec<u32> = texts.iter().flat_map(|ids| (0..).take(ids.len())).collect();
        let places = self.places.index_select(&Tensor::new(positions, device)?, 0)?;
        let words = self.words.forward(&Tensor::new(texts.concat(), device)?)?;
        let embedded = self.norm.forward(&(words + places)?)?;
        let lens: Vec<_> = texts.iter().map(|ids| ids.len()).collect();
        self.layers.iter().try_fold(embedded, |hidden, layer| layer.forward(&hidden, &lens))
    }
}

/// Attention and feed-forward of one layer.
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    attention_norm: LayerNorm,
    up: Linear,
    down: Linear,
    norm: LayerNorm,
    activation: Activation,
    num_heads: usize,
}

impl Layer {
    fn load(weights: &VarBuilder, config: &BertConfig) -> Result<Self> {
        let (wide, inner) = (config.hidden_size, config.intermediate_size);
        let attention = weights.pp("attention");
        let projection = |name| linear(wide, wide, attention.pp("self").pp(name));
        Ok(Self {
            query: projection("query")?,
            key: projection("key")?,
            value: projection("value")?,
            output: linear(wide, wide, attention.pp("output.dense"))?,
            attention_norm: layer_norm(wide, config.layer_norm_eps, attention.pp("output.LayerNorm"))?,
            up: linear(wide, inner, weights.pp("intermediate.dense"))?,
            down: linear(inner, wide, weights.pp("output.dense"))?,
            norm: layer_norm(wide, config.layer_norm_eps, weights.pp("output.LayerNorm"))?,
            activation: config.hidden_act,
            num_heads: config.num_attention_heads,
        })
    }

    /// Computes the layer for texts of `lens` tokens: `[tokens, hidden_size]`.
    fn forward(&self, hidden: &Tensor, lens: &[usize]) -> Result<Tensor> {
        let attended = self.output.forward(&self.attend(hidden, lens)?)?;
        let hidden = self.attention_norm.forward(&(attended + hidden)?)?;
        let inner = self.up.forward(&hidden)?;
        let inner = match self.activation {
            Activation::Gelu => inner.gelu_erf()?,
            Activation::GeluNew => inner.gelu()?,
            Activation::Relu => inner.relu()?,
        };
        self.norm.forward(&(self.down.forward(&inner)? + hidden)?)
    }

    /// Attends from every token to all of its text: `[tokens, hidden_size]`.
    fn attend(&self, hidden: &Tensor, lens: &[usize]) -> Result<Tensor> {
        let (queries, keys, values) = (self.query.forward(hidden)?, self.key.forward(hidden)?, self.value.forward(hidden)?);
        let mut attended = Vec::with_capacity(lens.len());
        let mut start = 0;
        for &len in lens {
            let of_text = |rows: &Tensor| rows.narrow(0, start, len);
            attended.push(self.attend_text(&of_text(&queries)?, &of_text(&keys)?, &of_text(&values)?)?);
            start += len;
        }
        if attended.len() > 1 { Tensor::cat(&attended, 0) } else { attended.pop().context("there is no text") }
    }

    /// Attends from every token of one text to all of them: `[tokens, hidden_size]`.
    fn attend_text(&self, queries: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
        let (num_tokens, wide) = queries.dims2()?;
        let by_head =
            |rows: &Tensor| rows.reshape((num_tokens, self.num_heads, wide / self.num_heads))?.transpose(0, 1)?.contiguous();
        let scale = ((wide / self.num_heads) as f64).sqrt().recip();
        let scores = (by_head(queries)?.matmul(&by_head(keys)?.t()?)? * scale)?;
        let weights = candle_nn::ops::softmax(&scores, D::Minus1)?;
        weights.matmul(&by_head(values)?)?.transpose(0, 1)?.reshape((num_tokens, wide))
    }
}
